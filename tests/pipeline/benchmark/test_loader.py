"""`benchmark loader`: its table, its containers and its references, at a tiny size."""

from __future__ import annotations

import json

import jobs
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.benchmark.__main__ import main
from pipeline.benchmark.loader import (
    BareDecode,
    PhotoDataset,
    Row,
    can_run,
    measure_decoders,
    rows,
)
from pipeline.benchmark.options import CONTAINERS, LoaderOptions
from pipeline.benchmark.photos import make_photos, pack
from pipeline.config import ConfigError
from pipeline.data.index.manifest import open_manifest

TINY = ("--rounds=2", "--images=16", "--files=12", "--batch=4", "--size=32")


def test_the_table_has_every_container_crop_and_reference(tmp_path):
    path = tmp_path / "found.json"
    argv = ["-m", "pipeline.benchmark", "loader", "--threads=2", f"--json={path}", *TINY]
    ended = jobs.run(argv, TMPDIR=str(tmp_path))
    assert ended.codes == [0], ended.text
    found = json.loads(path.read_text())
    raw, ratios = found["raw"], found["ratios"]
    assert {"loader_vs_dataloader", "loader_vs_dataloader_jitter"} <= ratios.keys()
    ours = raw["trainyard_folders_random_resized_crop_2t_images_per_sec"]["rounds"]
    reference = raw["dataloader_random_resized_crop_2t_images_per_sec"]["rounds"]
    rounds = found["ratio_rounds"]["loader_vs_dataloader"]["rounds"]
    assert rounds == pytest.approx([a / b for a, b in zip(ours, reference, strict=True)])
    for container in CONTAINERS:
        assert f"trainyard_{container}_random_resized_crop_2t_images_per_sec" in raw
    assert raw["files"] == 12
    assert 50 < raw["mean_file_kb"] < 120  # 82 KB over many files
    assert sorted(tmp_path.glob("tmp*")) == []  # the photos are gone
    assert can_run() == ("loader_vs_decode" in ratios) == ("not_run" not in raw)


def test_a_data_set_in_any_container_is_measured_and_left_as_it_is(tmp_path):
    make_photos(tmp_path / "made", 9, classes=3)
    everything = open_manifest(tmp_path / "made", "train", tmp_path / "cache")
    pack(everything, range(9), "tar", tmp_path / "data")
    before = sorted((tmp_path / "data").rglob("*"))
    path = tmp_path / "found.json"
    only = ("--containers=recordio", "--crops=scale_jitter", "--threads=1", "--files=5")
    argv = ["-m", "pipeline.benchmark", "loader", f"--data={tmp_path / 'data'}", *TINY[:2], *only]
    ended = jobs.run([*argv, "--batch=4", "--size=32", f"--json={path}"])
    assert ended.codes == [0], ended.text
    found = json.loads(path.read_text())
    assert found["raw"]["files"] == 5
    assert "trainyard_recordio_scale_jitter_1t_images_per_sec" in found["raw"]
    assert sorted((tmp_path / "data").rglob("*")) == before


def test_the_short_table_leaves_out_crops_and_the_full_one_does_not():
    short = rows(LoaderOptions(containers="tar,folders", threads="1"))
    assert short == [
        Row(container, crop, 1)
        for container, crop in (
            ("tar", "random_resized_crop"),
            ("tar", "scale_jitter"),
            ("folders", "random_resized_crop"),
        )
    ]
    full = rows(LoaderOptions(threads="2,1", table="full"))
    assert len(full) == len(set(full)) == 2 * 4 * 2


def test_every_container_holds_the_same_images(tmp_path):
    def classes(manifest, images):
        """Class of each image by its content."""
        labels = manifest.labels
        return {manifest.read(i).tobytes(): manifest.classes[labels[i]] for i in images}

    make_photos(tmp_path / "made", 7, classes=3)
    everything = open_manifest(tmp_path / "made", "train")
    images = [0, 2, 3, 6]
    for container in CONTAINERS:
        pack(everything, images, container, tmp_path / container)
        packed = open_manifest(tmp_path / container, "train")
        assert classes(packed, range(len(packed))) == classes(everything, images)


@pytest.mark.parametrize("crop", ["random_resized_crop", "scale_jitter"])
def test_the_reference_cuts_every_image_to_one_size(small_data, crop):
    manifest = open_manifest(small_data, "train")
    dataset = PhotoDataset(manifest, 48, length=120, crop=crop, short_side=(48, 90))
    assert len(dataset) == 120  # more than the 50 files: over and over
    items = [dataset[index] for index in range(50)]
    kinds = {(image.shape, image.dtype, image.is_contiguous()) for image, _ in items}
    assert len(kinds) == 1
    assert next(iter(kinds))[0] == (3, 48, 48)
    assert {label for _, label in items} == set(range(10))
    assert all(np.isfinite(image.numpy()).all() for image, _ in items)


def test_the_photos_have_imagenets_usual_sizes_and_go_round_the_classes(tmp_path):
    make_photos(tmp_path, 40, classes=3)
    files = sorted((tmp_path / "train").rglob("*.JPEG"))
    assert len(files) == 40
    assert all(max(Image.open(file).size) == 500 for file in files)
    mean = sum(file.stat().st_size for file in files) / len(files)
    assert 72_000 < mean < 92_000
    folders = sorted((tmp_path / "train").iterdir())
    assert [len(list(folder.iterdir())) for folder in folders] == [14, 13, 13]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_decoder_without_a_gpu_is_refused():
    with pytest.raises(ConfigError, match="--decode=gpu needs an NVIDIA GPU"):
        main(["loader", "--decode=gpu", "--files=4"])


@pytest.mark.skipif(not can_run(), reason="needs simplejpeg")
def test_bare_decoding_counts_what_it_decodes(tmp_path):
    make_photos(tmp_path, 4)
    folder = tmp_path / "train" / "photo_000"
    Image.new("RGB", (9, 9)).save(folder / "png.JPEG", "PNG")
    bare = BareDecode(open_manifest(tmp_path, "train"), threads=2, images=7)
    assert bare.measure() > 0
    for file in folder.glob("photo*"):
        file.unlink()
    with pytest.raises(ValueError, match="decodes none of the images"):
        BareDecode(open_manifest(tmp_path, "train"), threads=2, images=7)


def test_the_batches_of_each_decoder_that_is_there_are_counted():
    options = LoaderOptions(files=12, rounds=2, images=8, batch=4, size=32)
    found = measure_decoders(options)
    assert len(found.spreads["cpu_decoder_images_per_sec"].rounds) == 2
    gpu = "gpu_decoder_images_per_sec" in found.spreads
    assert gpu == ("gpu_decoder_vs_cpu_decoder" in found.ratios) == ("not_run" not in found.figures)
