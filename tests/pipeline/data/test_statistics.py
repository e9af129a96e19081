"""Means computed from a training set: exact, bound to data and crop, and really subtracted."""

import dataclasses
import shlex
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import copy_data
from one_process import train_here

from pipeline.config import Config, ConfigError, DataConfig
from pipeline.data.crops import CenterCrop, RandomResizedCrop
from pipeline.data.dali import DecodeSettings, Loader, make_pipeline
from pipeline.data.index.manifest import open_manifest
from pipeline.data.normalisation import IMAGENET, Normalisation
from pipeline.data.statistics import (
    PixelSums,
    load,
    normalisation_of,
    of_pixels,
    prepare_command,
    principal_axes,
    statistics_places,
)
from pipeline.data.stream import TrainStream, ValStream, train_planner
from pipeline.prepare import mean
from pipeline.prepare.__main__ import parse
from pipeline.prepare.options import MeanOptions
from pipeline.ranks.world import World
from pipeline.system import files
from pipeline.system.failure import Reported
from pipeline.train.loaders import open_val_loader, val_passes

CPU = torch.device("cpu")
NOTHING = Normalisation(np.zeros(3, np.float32), np.ones(3, np.float32), None, np.eye(3))
CROP = {"train_crop": "scale_jitter", "image_size": 32, "short_side": (36, 60)}


def draw(stream, normal: Normalisation, output: str = "float32", count: int = 12) -> np.ndarray:
    """A batch in the graph's own units, (B, H, W, 3)."""
    settings = DecodeSettings("cpu", CPU, 1, output=output, normalisation=normal)
    with closing(Loader(stream, [np.arange(count)], 1, count, settings)) as loader:
        return next(loader).images.permute(0, 2, 3, 1).float().numpy()


def made(size: int = 32, image: bool = True) -> Normalisation:
    """One whose every number is another."""
    rng = np.random.default_rng(5)
    whole = rng.uniform(0, 255, (size, size, 3)).astype(np.float32)
    axes = rng.normal(0, 30, (3, 3))
    found = Normalisation(
        np.array([100, 110, 120], np.float32), np.array([50, 60, 70], np.float32), whole, axes
    )
    return found if image else found.for_shape(None)


# The figures


def test_means_deviations_and_components_are_numpys():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (600, 8, 8, 3), dtype=np.uint8)
    pixels[..., 2] = (pixels[..., 0].astype(int) + pixels[..., 2] // 8) // 2  # correlated
    found = of_pixels(pixels)
    flat = pixels.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(found.mean, flat.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.std, flat.std(0), rtol=1e-6)
    np.testing.assert_allclose(found.image, pixels.mean(0), rtol=1e-6)
    # The axes' definition: eigenvectors of the covariance in 0..1, each as long as its eigenvalue.
    covariance = np.cov(flat.T / 255, bias=True)
    lengths = np.linalg.norm(found.color_axes / 255, axis=1)
    np.testing.assert_allclose(lengths, np.linalg.eigvalsh(covariance)[::-1], atol=1e-6)
    for axis, length in zip(found.color_axes / 255, lengths, strict=True):
        np.testing.assert_allclose(covariance @ axis, length * axis, atol=1e-7)


def test_axes_of_grey_images_have_no_negative_zero_which_would_be_another_digest():
    axes = principal_axes(np.full((3, 3), 900.0))
    np.testing.assert_allclose(axes[1:], 0)
    assert not np.signbit(axes).any()


def test_the_order_and_the_batches_do_not_change_a_bit():
    pixels = np.random.default_rng(1).integers(0, 256, (50, 6, 6, 3), dtype=np.uint8)
    sums = PixelSums()
    for part in (pixels[30:], pixels[:7], pixels[7:30].astype(np.float32)):
        sums.add(part)
    assert sums.images == 50
    assert sums.normalisation().digest == of_pixels(pixels).digest


def test_a_normalisation_survives_a_checkpoint_and_each_of_its_values_is_in_its_digest():
    whole = made()
    for one in (whole, made(image=False), IMAGENET):
        again = Normalisation.from_state(one.state())
        assert again.digest == one.digest
        assert (again.image is None) == (one.image is None)
    changes = [
        {"mean": whole.mean + 1}, {"std": whole.std + 1}, {"image": None},
        {"image": whole.image + 1}, {"color_axes": whole.color_axes + 1},
    ]  # fmt: skip
    digests = {dataclasses.replace(whole, **change).digest for change in changes}
    assert len(digests | {whole.digest}) == 6


def test_a_mean_image_is_for_views_of_its_own_shape():
    whole = made()
    assert whole.for_shape((32, 32)) is whole
    for shape in ((32, 33), (64, 64), None):
        assert whole.for_shape(shape).image is None
        np.testing.assert_array_equal(whole.for_shape(shape).mean, whole.mean)
    assert IMAGENET.for_shape((64, 64)) is IMAGENET


# What the graph makes of them


def test_the_mean_image_comes_before_the_mirror_and_the_offset_before_the_division(small_data):
    manifest, normal = open_manifest(small_data, "train"), made()
    coloured = RandomResizedCrop(32, color_std=0.3, normalisation=normal)
    stream = TrainStream(manifest, coloured, 0)
    plan = stream.select(np.arange(12)).plan
    assert set(plan.flips.tolist()) == {0, 1}
    assert np.abs(plan.offsets).max() > 5
    raw = draw(TrainStream(manifest, RandomResizedCrop(32, flip=False), 0), NOTHING)
    wanted = raw - normal.image
    wanted = np.where(plan.flips[:, None, None, None] == 1, wanted[:, :, ::-1], wanted)
    wanted = (wanted + plan.offsets[:, None, None, :]) / normal.std
    np.testing.assert_allclose(draw(stream, normal), wanted, atol=1e-5)
    np.testing.assert_allclose(draw(stream, normal, "float16"), wanted, atol=1e-2)


@pytest.mark.parametrize("crop", ["random_resized_crop", "scale_jitter"])
def test_colour_offsets_lie_along_the_axes_of_the_training_set(small_data, crop):
    axes = np.outer([1.0, 0, 0], [10.0, 20.0, -30.0])
    line = dataclasses.replace(IMAGENET, color_axes=axes)
    planner = train_planner(DataConfig(color_std=0.1, train_crop=crop), line)
    stream = TrainStream(open_manifest(small_data, "train"), planner, 0)
    offsets = stream.select(np.arange(20)).plan.offsets
    np.testing.assert_allclose(offsets, offsets[:, :1] * np.array([[1.0, 2.0, -3.0]]), rtol=1e-5)
    assert 0.3 < offsets[:, 0].std() < 2


def test_a_view_of_another_shape_than_the_mean_image_is_refused(small_data):
    stream = ValStream(open_manifest(small_data, "train"), CenterCrop(24, 30))
    with pytest.raises(AssertionError, match=r"a mean image of \(32, 32, 3\) for views of \(24, 2"):
        draw(stream, made())


def test_the_mean_image_is_in_the_graph_of_the_gpu_where_the_pixels_are():
    settings = DecodeSettings("gpu", CPU, 1, normalisation=made(8))
    graph = make_pipeline(lambda: None, 4, settings).serialize()
    plain = make_pipeline(lambda: None, 4, settings.for_shape(None)).serialize()
    for operator in (b"ArithmeticGenericOp", b"Constant"):
        assert operator in graph
        assert operator not in plain
    constant = graph[graph.index(b"Constant") :]
    assert b"gpu" in constant[constant.index(b"device") : constant.index(b"device") + 24]
    mean_pixel = made(8).image[3, 4, 1].tobytes()
    assert mean_pixel in graph
    assert mean_pixel not in plain


@pytest.mark.parametrize("size", [32, 40])
def test_validation_subtracts_the_mean_image_at_its_size_and_the_means_at_another(small_data, size):
    config = Config(DataConfig(image_size=size, val_resize=48, local_batch_size=12))
    val_set, normal = open_manifest(small_data, "val"), made(32)
    decode = DecodeSettings("cpu", CPU, 1, normalisation=normal)
    passes = val_passes(config.data, decode)
    with closing(open_val_loader(config, val_set, World(), passes)) as loader:
        batch = next(iter(loader))
    levels = draw(ValStream(val_set, CenterCrop(size, 48)), IMAGENET)
    wanted = levels * IMAGENET.std + IMAGENET.mean - (normal.image if size == 32 else normal.mean)
    found = batch.images.permute(0, 2, 3, 1).numpy() * normal.std
    np.testing.assert_allclose(found, wanted, atol=1e-3)


# prepare mean


def settings_of(root, **changes) -> DataConfig:
    return DataConfig(root=str(root), **CROP, **changes)


@pytest.fixture(scope="module")
def prepared(small_data, tmp_path_factory):
    """A data set with its means next to its manifest."""
    root = copy_data(small_data, tmp_path_factory.mktemp("prepared") / "data")
    mean.run(MeanOptions(root, **CROP))
    return root


def test_the_means_are_those_of_the_crops_of_epoch_0_unflipped_and_uncoloured(prepared):
    manifest = open_manifest(prepared, "train")
    plain = train_planner(settings_of(prepared, flip=False))
    crops = draw(TrainStream(manifest, plain, 0), NOTHING, count=50)
    config = settings_of(prepared, mean="pixel", color_std=0.1)  # flipped and coloured in training
    found = normalisation_of(config, manifest)
    assert found.digest == of_pixels(crops).digest
    channel = normalisation_of(dataclasses.replace(config, mean="channel"), manifest)
    assert channel.image is None
    np.testing.assert_array_equal(channel.mean, found.mean)
    assert normalisation_of(dataclasses.replace(config, mean="imagenet"), manifest) is IMAGENET


def test_threads_and_batches_do_not_change_the_means_and_a_sample_does(prepared, monkeypatch):
    config, manifest = settings_of(prepared), open_manifest(prepared, "train")
    whole = normalisation_of(dataclasses.replace(config, mean="pixel"), manifest)
    monkeypatch.setattr(mean, "_BATCH", 16)  # the last batch is shorter
    assert mean.compute(config, manifest, 50, threads=3).digest == whole.digest
    sample = mean.compute(config, manifest, 7, threads=1)
    assert sample.digest != whole.digest
    assert np.abs(sample.mean - whole.mean).max() < 60


def test_prepare_says_what_it_found_and_a_training_warns_of_a_sample(
    prepared, capsys, tmp_path, caplog
):
    name, options = parse(
        ["mean", f"--root={prepared}", "--train-crop=scale_jitter", "--image-size=32",
         "--short-side=[36,60]", "--images=10", f"--cache-dir={tmp_path}"]
    )  # fmt: skip
    assert (name, options.short_side, options.images) == ("mean", (36, 60), 10)
    mean.run(options)
    out = capsys.readouterr().out
    (place,) = tmp_path.glob("*-train-mean-*.npz")
    assert "10 images in" in out
    assert f"written: {place}" in out
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []
    config = settings_of(prepared, mean="channel", cache_dir=str(tmp_path))
    with caplog.at_level("WARNING", logger="trainyard"):
        normalisation_of(config, open_manifest(prepared, "train"))
    assert "are of 10 of the 50 training images; prepare mean without --images" in caplog.text


def test_a_configurations_crop_is_taken_and_options_come_before_it(prepared, tmp_path):
    yaml = tmp_path / "paper.yaml"
    yaml.write_text(
        "data: {train_crop: scale_jitter, image_size: 32, short_side: [36, 60], val_resize: 40}\n"
    )
    options = MeanOptions(prepared, config=yaml)
    assert statistics_places(options.data) == statistics_places(settings_of(prepared))
    other = MeanOptions(prepared, config=yaml, short_side=(40, 50))
    assert other.data.short_side == (40, 50)
    assert statistics_places(other.data) != statistics_places(options.data)


def test_missing_means_are_an_error_with_the_command_that_makes_them(small_data, tmp_path):
    root = copy_data(small_data, tmp_path / "a set")
    config = settings_of(root, mean="pixel", cache_dir=str(tmp_path / "cache"))
    manifest = open_manifest(root, "train", tmp_path / "cache")
    command = prepare_command(config)
    with pytest.raises(ValueError, match="data.mean=pixel needs the statistics .*there is no") as e:
        normalisation_of(config, manifest)
    assert str(e.value).endswith(f"; run: {command}")
    name, options = parse(shlex.split(command)[3:])
    assert name == "mean"
    mean.run(options)
    assert normalisation_of(config, manifest).image.shape == (32, 32, 3)


def test_means_of_other_data_or_another_crop_are_not_taken(prepared, tmp_path):
    root = shutil.copytree(prepared, tmp_path / "changed")
    victim = next((root / "train").rglob("*.JPEG"))
    (victim.parent / f"copy-{victim.name}").write_bytes(victim.read_bytes())
    with pytest.raises(ValueError, match="npz was computed for other data"):
        normalisation_of(settings_of(root, mean="pixel"), open_manifest(root, "train"))
    other = dataclasses.replace(settings_of(prepared, mean="channel"), short_side=(36, 61))
    with pytest.raises(ValueError, match=r"there is no .*--short-side '\[36,61\]'"):
        normalisation_of(other, open_manifest(prepared, "train"))


def changed(content: bytes, at: int, value: int) -> bytes:
    return content[:at] + bytes([value]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [
    lambda whole: changed(whole, len(whole) // 2, whole[len(whole) // 2] ^ 1),
    lambda whole: changed(whole, whole.rfind(b"PK\x01\x02") + 10, 99),  # how it is compressed
    lambda whole: whole[: len(whole) // 3],
])  # fmt: skip
def test_a_damaged_file_of_means_is_not_taken(prepared, tmp_path, damage):
    root = shutil.copytree(prepared, tmp_path / "damaged", copy_function=shutil.copy2)
    config = settings_of(root, mean="pixel")
    place = statistics_places(config)[0]
    place.write_bytes(damage(place.read_bytes()))
    with pytest.raises(ValueError, match=r"npz is damaged \("):
        normalisation_of(config, open_manifest(root, "train"))


def test_a_file_of_means_that_cannot_be_read_is_not_called_damaged(prepared, tmp_path, monkeypatch):
    def refuse(_: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "READ_AGAIN_SEC", (0.0,))
    monkeypatch.setattr("pipeline.system.files.whole", refuse)
    found = load(tmp_path / "a.npz", {})
    assert found == f"{tmp_path}/a.npz cannot be read (Input/output error)"


def test_a_run_without_the_means_it_asks_for_ends_before_its_first_step(small_data, tmp_path):
    with pytest.raises(Reported, match="run: python -m pipeline.prepare mean --root"):
        train_here(small_data, tmp_path, "--data.mean=pixel")
    assert not (tmp_path / "test/metrics.jsonl").exists()


def test_a_staged_copy_is_found_whatever_the_cache_folder_says(prepared, tmp_path):
    config = settings_of(prepared, mean="pixel", cache_dir=str(tmp_path))
    assert normalisation_of(config, open_manifest(prepared, "train")).image is not None


def test_there_is_nothing_to_prepare_for_cifar(tmp_path):
    yaml = tmp_path / "cifar.yaml"
    yaml.write_text("data: {dataset: cifar-10, train_crop: padded, image_size: 32}\n")
    with pytest.raises(ConfigError, match="is for cifar-10, whose means a training computes itse"):
        MeanOptions(tmp_path, config=yaml)


@pytest.mark.parametrize("wrong, message", [
    ({"images": 0}, "--images=0 must be at least 1"),
    ({"images": 51}, "--images=51 is more than the 50 training images"),
    ({"workers": -1}, "--workers=-1 must be 0 or more"),
    ({"root": Path("nothing")}, "--root .*nothing is not a folder"),
])  # fmt: skip
def test_wrong_options_are_refused(prepared, wrong, message):
    with pytest.raises(ConfigError, match=message):
        mean.run(MeanOptions(**{"root": prepared, **CROP, **wrong}))
