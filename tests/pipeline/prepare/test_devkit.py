"""The devkit: ids against wnids, a MATLAB file as SciPy writes it, and kits that are none."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from imagenet_archives import WNIDS, meta_mat, small_archives, tar_of

from pipeline.config import ConfigError
from pipeline.prepare.devkit import read_devkit
from pipeline.prepare.mat5 import read_variables

# Written once by SciPy 1.17.1: savemat(..., {"synsets": structure of 3 rows}, do_compression=True)
FROM_SCIPY = base64.b64decode(
    "TUFUTEFCIDUuMCBNQVQtZmlsZSBQbGF0Zm9ybTogcG9zaXgsIENyZWF0ZWQgb246IFNhdCBOb3YgMjEgMDY6NTg6"
    "NTYgMjAyNgAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAABSU0PAAAA"
    "eAEAAHic5VTBTsIwGC6ICAcRPXnsA3DYyCJwYokeJDEe1OBxWUZZG7fOrCXIG/gqPocvxCPYugKlQUeoN//kX/N9"
    "2/e1f/NlLQBA+wSAulgboqugqGOFj0RXVIvPAFtQhjgT72vgXPHvokd3j+OH667jdoPRjTR4vi/Wdc2zfMJ0Ik4y"
    "tkXQWRpEmCSTHNFvYgusPCjiAUYkxlxJeB4SGpA0jBEDLUH2wWaeujFPRWtZTcUXtRxKva/pazv0TU3fVpg6Xdcd"
    "9PoDxUuf2xKfS8NH4hfC4TR768DxLHlFDKZhlGecsH3O1TL8JGZpmCQwztFC2gLL+yn0zi/6Ven6lc5238P1Dd9y"
    "f//wXLie5/SuPG2OslxcGD4Sc0Qj3IFPhEYh5PK58Ss715nhJ3uaf34wPA85yuGUMPw/cwEsc9GwyIUot+c5P8yx"
    "y6du+EiMKCd8sV8OTg29xByHHM4xiTAk7I/u0y/RVw19ey1fDnUf2/+4Ta6+AIYyXPg="
)


def kit_of(folder: Path, **files: bytes) -> Path:
    path = folder / "devkit.tar.gz"
    members = {f"kit/data/{name.replace('__', '.')}": content for name, content in files.items()}
    path.write_bytes(tar_of(members, mode="w:gz"))
    return path


def test_a_file_of_scipy_is_read_as_scipy_means_it():
    fox, tench, entity = read_variables(FROM_SCIPY)["synsets"]
    assert fox["WNID"] == "n02119789"
    assert fox["words"] == "kit fox, Vulpes macrotis"
    assert [fox["ILSVRC2012_ID"].item(), fox["num_train_images"].item()] == [1, 3]
    assert tench["gloss"] == "fréshwater fish"
    assert fox["children"].size == 0
    assert entity["children"].tolist() == [1, 2]


def test_labels_are_ids_of_the_devkit_and_classes_above_others_are_left_out(tmp_path):
    archives = small_archives()
    archives.truth = [1, 2, 3, 4, 4, 1]
    kit = read_devkit(archives.write(tmp_path)["devkit"])
    # As labels (less one), the same numbers would name other classes.
    assert kit.val_wnids == [WNIDS[i] for i in (0, 1, 2, 3, 3, 0)]
    assert [(s.wnid, s.words, s.train_images) for s in kit.synsets] == [
        ("n01440764", "tench, Tinca tinca", 4),
        ("n02100735", "English setter", 6),
        ("n02119789", "kit fox, Vulpes macrotis", 3),
        ("n03661043", "library", 5),
    ]


def test_what_is_no_devkit_or_cut_off_is_said(tmp_path):
    truth = {"ILSVRC2012_validation_ground_truth__txt": b"1\n"}
    with pytest.raises(ConfigError, match=r"no ImageNet development kit: it has no data/meta.mat"):
        read_devkit(kit_of(tmp_path, **truth))
    with pytest.raises(ConfigError, match=r"has no data/ILSVRC2012_validation_ground_truth.txt"):
        read_devkit(kit_of(tmp_path, meta__mat=FROM_SCIPY))
    path = tmp_path / "devkit.tar.gz"
    whole = small_archives().write(tmp_path)["devkit"].read_bytes()
    for content in (b"<html>not found</html>" * 100, whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"cannot be read as a .tar.gz archive"):
            read_devkit(path)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (b"no matrix" * 50, "it is not a MATLAB 5 file"),
        (FROM_SCIPY[:300], "it is a damaged MATLAB file"),
        (FROM_SCIPY[:200] + bytes(50) + FROM_SCIPY[250:], "it is a damaged MATLAB file"),
        # Not all that is no text, which can be the whole file.
        (
            meta_mat([{"WNID": "n1"}], name="é" * 9),
            r"it is a damaged MATLAB file \(UnicodeDecodeError: 'ascii' .*\)$",
        ),
        (meta_mat([{"WNID": "n1"}]), "its synsets have no ILSVRC2012_ID, words, num_children"),
        (meta_mat([{"a": 1}], name="other"), "it holds no structure named synsets"),
    ],
    ids=["other file", "cut", "damaged", "name", "other fields", "other variable"],
)
def test_a_meta_mat_that_cannot_be_used_is_said(tmp_path, meta, message):
    files = {"meta__mat": meta, "ILSVRC2012_validation_ground_truth__txt": b"1\n"}
    with pytest.raises(
        ConfigError, match=rf"data/meta.mat in --devkit .* cannot be used: {message}"
    ):
        read_devkit(kit_of(tmp_path, **files))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"WNID": "../escaped"}, r"'../escaped' is no plain name"),
        ({"WNID": "n01440764"}, "share 3 wnids"),
        ({"ILSVRC2012_ID": 2}, "ILSVRC2012_ID 2 occurs twice"),
        ({"ILSVRC2012_ID": 1.5}, "not one whole number"),
        ({"num_train_images": [1, 2]}, "not one whole number"),
        ({"words": 7}, "is no text"),
    ],
    ids=str,
)
def test_rows_that_contradict_are_refused(tmp_path, change, message):
    archives = small_archives()
    archives.rows = lambda rows: [rows[0] | change, *rows[1:]]
    with pytest.raises(ConfigError, match=message):
        read_devkit(archives.write(tmp_path)["devkit"])


@pytest.mark.parametrize("label", [5, "x"], ids=["the class above the others", "no number"])
def test_a_label_of_no_class_is_named_with_its_line(tmp_path, label):
    archives = small_archives()
    archives.truth[3] = label
    with pytest.raises(ConfigError, match=f"names no class of meta.mat at line 4: {label}; copy"):
        read_devkit(archives.write(tmp_path)["devkit"])
