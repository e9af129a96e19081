"""Verification: every kind of bad file is found, good ones of odd kinds are left in peace."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from image_zoo import specimens
from imagenet_archives import tar_of
from PIL import Image
from terminal import on_terminal

from pipeline.data.index.manifest import open_manifest
from pipeline.prepare import verify
from pipeline.prepare.__main__ import main
from pipeline.prepare.decode import Decoder
from pipeline.prepare.options import VerifyOptions
from pipeline.system.failure import run_command


def encoded(
    kind: str = "JPEG", size: tuple[int, int] = (60, 40), mode: str = "RGB", **more
) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **more)
    return buffer.getvalue()


def damaged(content: bytes) -> bytes:
    """Entropy-coded bytes overwritten by a marker that has no place there: libjpeg only warns."""
    middle = len(content) // 2
    return content[:middle] + b"\xff\xd3" * 20 + content[middle + 40 :]


def with_thumbnail(content: bytes) -> bytes:
    """A JPEG with another one, end mark and all, in a segment of its header."""
    inner = encoded(size=(8, 8))
    segment = b"\xff\xe1" + (2 + len(inner)).to_bytes(2, "big") + inner
    return content[:2] + segment + content[2:]


JPEG = encoded()
KINDS = dict(specimens(mutants=0))
GOOD = {
    "plain": JPEG,
    "grey": encoded(mode="L"),
    "cmyk": encoded(mode="CMYK"),
    "progressive": encoded(progressive=True),
    "1x1": encoded(size=(1, 1)),
    "1x500": encoded(size=(1, 500)),
    "trailing zeros": JPEG + bytes(100),
    "trailing text": JPEG + b"text",
    "fill bytes": JPEG[:2] + b"\xff\xff" + JPEG[2:],
    "thumbnail": with_thumbnail(JPEG),
    **{kind.lower(): encoded(kind) for kind in ("PNG", "BMP", "TIFF", "WEBP")},
    # Which the first of the decoders leaves to another, and says so.
    "cmyk tiff": encoded("TIFF", mode="CMYK"),
}
BAD = {
    "half": (JPEG[: len(JPEG) // 2], "has no end marker"),
    "half progressive": (GOOD["progressive"][:-500], "has no end marker"),
    "no end": (JPEG[:-2], "has no end marker"),
    "half the end": (JPEG[:-1], "has no end marker"),
    "half with a thumbnail": (with_thumbnail(JPEG[:-600]), "has no end marker"),
    "header only": (JPEG[: JPEG.index(b"\xff\xda")], "is cut off in its header"),
    "no header": (JPEG[:30], "is cut off in its header"),
    "two marks": (JPEG[:2] + b"abc" + JPEG[2:], "has the bytes 6162 where a JPEG marker belongs"),
    "text": (b"not an image, sorry", "no image header"),
    "html": (b"<html><body>404</body></html>", "no image header"),
    "gif": (encoded("GIF"), "no image header"),
    "empty": (b"", "the file is empty"),
    "16 bits": (KINDS["bmp-40-16.bmp"], "is a BMP of 16 bits a pixel with no compression"),
    "run lengths": (KINDS["bmp-rle4.bmp"], "is a BMP of 4 bits a pixel with RLE4"),
    "integers": (KINDS["tiff-I-None.tif"], "is a TIFF of signed numbers"),
    "floats": (KINDS["tiff-F-None.tif"], "is a TIFF of floating point numbers"),
    "turned": (KINDS["tiff-turned-6-RGB.tif"], "is a TIFF turned by its orientation tag (6)"),
    "grey and alpha": (KINDS["tiff-LA-None.tif"], "is a grey TIFF of 2 samples a pixel"),
    "unknown marker": (KINDS["jpeg-segment-F0.jpg"], "has the marker FFF0 in its JPEG header"),
    "checksum": (KINDS["png-crc-IDAT.png"], "chunk IDAT has a wrong checksum"),
    "cut png": (GOOD["png"][:-300], "is a PNG file that is cut off"),
    "cut bmp": (GOOD["bmp"][:-300], "its header needs 7254: it is cut off"),
}


@pytest.fixture(autouse=True)
def small_place(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def make(root: Path, files: dict[str, bytes], folder: str = "train/klasse ö") -> Path:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (root / folder / f"{name}.JPEG").write_bytes(content)
    return root


def verified(root: Path, **more) -> list[dict]:
    """The report's lines, after the command has ended as the findings ask for."""
    options = VerifyOptions(root, workers=1, **more)
    error = ""
    try:
        verify.run(options)
    except ValueError as raised:
        error = str(raised)
    found = [json.loads(line) for line in options.report.read_text().splitlines()]
    bad = sum(line["verdict"] == "bad" for line in found)
    assert error.startswith(f"{bad} of " if bad else ""), error
    assert bool(error) is (bad > 0)
    return found


@pytest.mark.parametrize("full", [False, True], ids=["fast", "full"])
def test_good_files_of_every_kind_pass(tmp_path, full, capsys):
    root = make(make(tmp_path / "data", GOOD), GOOD, "val/klasse ö")
    (root / "train/klasse ö/linked.JPEG").symlink_to(root / "train/klasse ö/plain.JPEG")
    (root / "train/klasse ö/._plain.JPEG").write_bytes(b"no image, and none that counts")
    assert verified(root, full=full) == []
    said = capsys.readouterr().out
    assert f"train: {len(GOOD) + 1} images, 0 bad, 0 suspect" in said
    assert f"val: {len(GOOD)} images, 0 bad, 0 suspect" in said


@pytest.mark.parametrize("full", [False, True], ids=["fast", "full"])
def test_every_kind_of_bad_file_is_found_with_its_reason(tmp_path, full):
    contents = {name: content for name, (content, _) in BAD.items()}
    root = make(tmp_path / "data", GOOD | contents)
    found = {Path(line["path"]).stem: line for line in verified(root, full=full)}
    assert sorted(found) == sorted(BAD)
    for name, (content, reason) in BAD.items():
        assert reason in found[name]["reason"]
        assert found[name]["bytes"] == len(content)
        assert found[name]["verdict"] == "bad"
        assert (found[name]["changed"], found[name]["repaired"]) == (False, None)


def test_the_exclusion_list_names_images_of_this_very_data(tmp_path):
    contents = {name: content for name, (content, _) in BAD.items()}
    root = make(tmp_path / "data", GOOD | contents)
    make(root, {"plain": JPEG}, "val/klasse ö")
    before = {split: open_manifest(root, split).digest for split in ("train", "val")}
    found = verified(root, report=tmp_path / "found.jsonl")
    listed = json.loads((tmp_path / "found.exclude.json").read_text())["splits"]
    assert {split: listed[split]["data_hash"] for split in listed} == before
    assert listed["train"]["images"] == sorted(line["image"] for line in found)
    assert listed["val"]["images"] == []
    manifest = open_manifest(root, "train")
    assert {manifest.path(i).stem for i in listed["train"]["images"]} == set(BAD)
    assert manifest.digest == before["train"]
    assert len(manifest) == len(GOOD) + len(BAD)


def test_files_that_went_or_changed_after_the_scan_are_told_and_not_excluded(tmp_path):
    root = make(tmp_path / "data", dict.fromkeys(("a", "b", "c", "d", "e"), JPEG))
    folder = root / "train/klasse ö"
    open_manifest(root, "train")
    times = os.stat(folder)
    (folder / "a.JPEG").unlink()
    (folder / "b.JPEG").unlink()
    (folder / "b.JPEG").mkdir()
    (folder / "c.JPEG").write_bytes(JPEG[:-100])
    (folder / "d.JPEG").write_bytes(b"")
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    found = verified(root)
    assert [line["reason"] for line in found] == [
        "it cannot be read: No such file or directory",
        "it cannot be read: it is a folder, not a regular file",
        f"has {len(JPEG) - 100} bytes, the image index recorded {len(JPEG)} (if it was replaced on "
        f"purpose, python -m pipeline.prepare index --again indexes the data again; runs that "
        f"began before will see it as other data)",
        "the file is empty",
    ]
    assert all(line["changed"] for line in found)
    listed = json.loads(Path("verify.exclude.json").read_text())
    assert listed["splits"]["train"]["images"] == []


def test_an_image_of_another_size_than_recorded_is_found(tmp_path):
    root = make(tmp_path / "data", {"a": JPEG})
    open_manifest(root, "train")
    frame = JPEG.index(b"\xff\xc0")
    other = JPEG[: frame + 5] + b"\x00\x30" + JPEG[frame + 7 :]  # 48 rows, the same length
    (root / "train/klasse ö/a.JPEG").write_bytes(other)
    (line,) = verified(root)
    assert line["reason"] == "is 60 x 48 by its header, the image index recorded 60 x 40"
    (root / "train/klasse ö/a.JPEG").write_bytes(b"<html>".ljust(len(JPEG)))
    (line,) = verified(root)
    assert line["reason"].startswith("it was 60 x 40 when it was indexed: no image header")


def test_what_decodes_with_a_warning_is_suspect_in_full_mode_and_does_not_fail(tmp_path, capfd):
    files = {f"good{i}": JPEG for i in range(40)}
    root = make(tmp_path / "data", files | {"damaged": damaged(JPEG)})
    make(root, {"cut, with an end": JPEG[:-600] + b"\xff\xd9", "plain": JPEG})
    assert verified(root) == []
    found = verified(root, full=True)
    assert [Path(line["path"]).stem for line in found] == ["cut, with an end", "damaged"]
    assert {line["verdict"] for line in found} == {"suspect"}
    assert all("Corrupt JPEG data" in line["reason"] for line in found)
    assert json.loads(Path("verify.exclude.json").read_text())["splits"]["train"]["images"] == []
    assert "Corrupt JPEG data" not in capfd.readouterr().err


def test_a_file_that_ends_in_zeros_is_bad_by_its_marker_though_it_decodes_with_a_warning(tmp_path):
    root = make(tmp_path / "data", {"a": JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2)})
    (line,) = verified(root)
    assert (line["verdict"], line["reason"]) == ("bad", "has no end marker")
    (line,) = verified(root, full=True, repair=tmp_path / "repaired")
    assert line["verdict"] == "suspect"
    assert "has no end marker" in line["reason"]
    assert not (tmp_path / "repaired").exists()


@pytest.mark.parametrize("full", [False, True], ids=["fast", "full"])
def test_repair_copies_what_misses_only_the_end_and_leaves_the_data_set_alone(tmp_path, full):
    files = {name: content for name, (content, _) in BAD.items()} | GOOD
    root = make(tmp_path / "data", files)
    before = {path: path.read_bytes() for path in root.rglob("*.JPEG")}
    found = verified(root, full=full, repair=tmp_path / "repaired")
    repaired = {path.stem: path for path in (tmp_path / "repaired").rglob("*") if path.is_file()}
    assert sorted(repaired) == ["half the end", "no end"]
    for name, path in repaired.items():
        assert path.read_bytes() == JPEG
        assert path == tmp_path / "repaired/train/klasse ö" / f"{name}.JPEG"
    by_name = {Path(line["path"]).stem: line for line in found}
    assert by_name["no end"]["reason"] == "has no end marker, nothing else"
    assert by_name["no end"]["repaired"] == str(repaired["no end"])
    assert "has no end marker and is cut off: Corrupt JPEG" in by_name["half"]["reason"]
    assert by_name["half"]["repaired"] is None
    assert {path: path.read_bytes() for path in before} == before


def test_what_shows_as_flawed_is_decoded_apart_from_the_rest(tmp_path, monkeypatch):
    batches, verdicts = [], Decoder.verdicts
    monkeypatch.setattr(
        Decoder, "verdicts", lambda *args: batches.append(list(args[1])) or verdicts(*args)
    )
    bad = {"2": JPEG[:-2], "4": BAD["half"][0]}
    root = make(tmp_path / "data", dict.fromkeys("1235", JPEG) | bad)
    assert [line["image"] for line in verified(root, full=True)] == [1, 3]
    assert batches == [[0, 2, 4], [1], [3]]


def test_a_repair_loads_the_decoder_at_the_first_file_that_needs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.prepare.decode.listening", None)
    root = make(tmp_path / "data", {"a": JPEG, "b": b"text"})
    (line,) = verified(root, repair=tmp_path / "mended")
    assert (line["image"], line["verdict"]) == (1, "bad")


def test_an_image_that_fails_without_a_word_is_bad(tmp_path, monkeypatch):
    def fail(self):
        raise RuntimeError

    monkeypatch.setattr("nvidia.dali.Pipeline.run", fail)
    root = make(tmp_path / "data", {"a": JPEG})
    (line,) = verified(root, full=True)
    assert (line["verdict"], line["reason"]) == ("bad", "no reason given")


def test_an_image_of_10000_x_10000_passes(tmp_path):
    huge = io.BytesIO()
    Image.new("L", (10_000, 10_000), 99).save(huge, "JPEG")
    root = make(tmp_path / "data", {"huge": huge.getvalue(), "a": JPEG, "z": JPEG})
    assert verified(root, full=True) == []


def test_every_image_of_many_is_looked_at_once(tmp_path, capsys):
    root = make(tmp_path / "data", {f"{i:04}": JPEG for i in range(130)})
    (root / "train/klasse ö" / "0129.JPEG").write_bytes(JPEG[:-2])
    (line,) = verified(root)
    assert line["image"] == 129
    assert "train: 130 images, 1 bad, 0 suspect" in capsys.readouterr().out


def test_files_without_permission_to_read_are_found(tmp_path, nobody):
    root = make(tmp_path / "data", {"a": JPEG, "b": JPEG})
    open_manifest(root, "train")
    (root / "train/klasse ö/b.JPEG").chmod(0)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports").chmod(0o777)
    with nobody():
        (line,) = verified(root, report=tmp_path / "reports/r.jsonl")
    assert line["reason"] == "it cannot be read: Permission denied"


@pytest.mark.parametrize("full", [False, True], ids=["fast", "full"])
def test_images_in_containers_are_verified_in_place(tmp_path, full):
    (tmp_path / "data/train").mkdir(parents=True)
    shard = tmp_path / "data/train/shard-000000.tar"
    shard.write_bytes(tar_of({"a/1.JPEG": JPEG, "a/2.JPEG": JPEG[:-2], "b/1.JPEG": JPEG}))
    (line,) = verified(tmp_path / "data", full=full, repair=tmp_path / "repaired")
    assert (line["image"], line["bytes"], line["repaired"]) == (1, len(JPEG) - 2, None)
    assert "shard-000000.tar" in line["path"]
    assert "a/2.JPEG" in line["path"]
    assert not (tmp_path / "repaired").exists()


def test_exit_codes_and_the_line_of_the_command(tmp_path, capfd):
    root = make(tmp_path / "data", {"a": JPEG, "b": JPEG[:-2]})
    argv = ["verify", f"--root={root}", f"--report={tmp_path / 'r.jsonl'}"]
    for code in (2, 0):
        with pytest.raises(SystemExit) as ended:
            run_command(main, argv)
        assert ended.value.code == code
        said = capfd.readouterr()
        assert ("error: 1 of 2 images would fail in training: " in said.err) is (code == 2)
        assert said.out.splitlines()[-1].startswith("written: ")
        (root / "train/klasse ö/b.JPEG").unlink(missing_ok=True)


def test_the_bar_stands_on_the_terminal_and_not_among_the_decoders_words(tmp_path):
    root = make(tmp_path / "data", {"a": JPEG})
    argv = ["verify", f"--root={root}", "--full", f"--report={tmp_path / 'r.jsonl'}"]
    said, shown = on_terminal(["-m", "pipeline.prepare", *argv])
    assert f"verifying {root}/train:" in shown
    assert "train: 1 images, 0 bad, 0 suspect" in said
