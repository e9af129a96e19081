"""Test images in chunks that are the same on any number of ranks, each drawn for every view."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import Config, DataConfig
from pipeline.data.crops import WholeImage
from pipeline.data.dali import DecodeSettings
from pipeline.data.index.manifest import open_manifest
from pipeline.data.normalisation import IMAGENET
from pipeline.evaluate.protocol import ViewProtocol
from pipeline.evaluate.view_stream import ViewStream, open_loader, own_chunks, size_chunks
from pipeline.prepare.parity import execute, inside
from pipeline.ranks.world import World

DECODE = DecodeSettings("cpu", torch.device("cpu"), threads=1)
SIZES = [(60, 44), (44, 60), (60, 44), (50, 50), (60, 44), (44, 60), (60, 44)]
MULTI_SCALE = ViewProtocol("multi-scale", (32, 40), mirror=True)


@pytest.fixture(scope="module")
def val_set(tmp_path_factory):
    """Seven smooth images of three sizes in two classes."""
    root = tmp_path_factory.mktemp("views")
    for number, size in enumerate(SIZES):
        folder = root / "val" / f"class_{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (5, 6, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.JPEG", quality=95)
    return open_manifest(root, "val")


def config_of(**data: object) -> Config:
    return Config(DataConfig(image_size=32, val_resize=36, **data))


def pixels_of(images: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) normalised -> (B, H, W, 3) in 0..255."""
    return images.permute(0, 2, 3, 1).numpy() * IMAGENET.std + IMAGENET.mean


@pytest.mark.parametrize("protocol", [ViewProtocol("10-crop"), MULTI_SCALE])
def test_dali_draws_every_view_of_every_image_as_pillow_does(val_set, protocol):
    config = config_of(local_batch_size=3)
    views = protocol.views(config)
    loader = open_loader(config, val_set, World(), DECODE, protocol, frozenset())
    drawn = []
    with closing(loader):
        for number, batch in enumerate(loader):
            view = views[number % len(views)]
            images = batch.positions % len(val_set)
            drawn += [(number % len(views), int(image)) for image in images]
            assert batch.labels.tolist() == val_set.labels[images].tolist()
            plan = view.plan(val_set.heights[images], val_set.widths[images])
            assert batch.images.shape[2:] == plan.shape
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
            expected = execute(plan, [val_set.read(int(image)).tobytes() for image in images])
            error = np.abs(pixels_of(batch.images) - expected).max(axis=3)
            whole = isinstance(view, WholeImage)  # whose edges DALI repeats and Pillow leaves out
            mask = np.ones(error.shape, bool) if whole else inside(
                plan, val_set.heights[images], val_set.widths[images]
            )  # fmt: skip
            assert error[mask].max() <= (4.5 if whole else 2.5)
            assert error[mask].mean() < 0.7
    assert sorted(drawn) == [(v, i) for v in range(len(views)) for i in range(len(val_set))]


def test_chunks_hold_images_of_one_size_and_no_more_pixels_than_allowed(val_set):
    views = [WholeImage(32), WholeImage(64)]
    one = 64 * (64 * 60 // 44)
    for allowed, most in ((3 * one, 3), (one, 1), (1, 1)):
        chunks = size_chunks(val_set, allowed, views)
        for chunk in chunks:
            assert len({(val_set.heights[i], val_set.widths[i]) for i in chunk}) == 1
        assert max(map(len, chunks)) == most
        assert sorted(np.concatenate(chunks).tolist()) == list(range(len(val_set)))


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("chunks", [0, 1, 2, 7, 100])
def test_ranks_share_the_chunks_without_gap_or_overlap(chunks, ranks):
    costs = np.random.default_rng(chunks).integers(1, 1000, chunks).tolist()
    shares = [own_chunks(costs, rank, ranks) for rank in range(ranks)]
    assert [chunk for share in shares for chunk in share] == list(range(chunks))
    work = [sum(costs[chunk] for chunk in share) for share in shares]
    assert max(work) <= sum(costs) / ranks + max(costs, default=0)


def test_a_stand_in_is_squeezed_into_the_shape_of_its_batch(val_set):
    stream = ViewStream(val_set, [WholeImage(32)])
    wide = [i for i in range(len(val_set)) if val_set.widths[i] == 60]
    stream.excluded = frozenset(wide[:1])
    selection = stream.select(np.array(wide, dtype=np.int64))
    assert selection.plan.shape == (32, 43)
    stand_in = int(selection.images[0])
    assert stand_in != wide[0]
    size = (float(val_set.heights[stand_in]), float(val_set.widths[stand_in]))
    assert selection.plan.boxes[0].tolist() == [0, 0, *size]
    assert selection.labels[0] == -2
    assert (selection.labels[1:] >= 0).all()
