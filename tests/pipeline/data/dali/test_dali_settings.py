"""Every decoding setting reaches DALI's graph, and no output type changes what the model sees."""

import dataclasses
import re
import struct
from contextlib import closing

import numpy as np
import pytest
import torch
from one_process import config_of, train_here

from pipeline.config import Config, ConfigError, DataConfig, OptimConfig
from pipeline.data.crops import CenterCrop, RandomResizedCrop
from pipeline.data.dali import DecoderMemory, DecodeSettings, Loader, make_pipeline
from pipeline.data.dali.graph import make_decoding_pipeline
from pipeline.data.dali.settings import choose_decoding, decoder_memory
from pipeline.data.index.manifest import open_manifest
from pipeline.data.normalisation import IMAGENET
from pipeline.data.stream import TrainStream, ValStream
from pipeline.ranks.places import Share

CPU = torch.device("cpu")
MEMORY = DecoderMemory(5980, 6430, 211_025_920, 140_544_512)
GPU = DecodeSettings("gpu", CPU, 7, 4, hw_decoder_load=0.875, memory=MEMORY)
GPU_ONLY = {
    "hw_decoder_load": 0.875,
    "preallocate_width_hint": 5980,
    "preallocate_height_hint": 6430,
    "device_memory_padding": 211_025_920,
    "host_memory_padding": 140_544_512,
}


def graph(settings: DecodeSettings):
    return make_pipeline(lambda: None, 4, settings)


def varint(value: int) -> bytes:
    low = value & 0x7F
    return bytes([low]) if value < 128 else bytes([low | 0x80]) + varint(value >> 7)


def argument(name: str, value: float) -> bytes:
    """An argument as DALI's protobuf has it: name, type, value (float: field 3, integer: 4)."""
    text = name.encode()
    if isinstance(value, float):
        kind, stored = b"float", b"\x1d" + struct.pack("<f", value)
    else:
        kind, stored = b"int64", b"\x20" + varint(value)
    head = b"\x0a" + varint(len(text)) + text + b"\x12" + varint(len(kind)) + kind
    return head + stored


@pytest.mark.parametrize("name", GPU_ONLY)
def test_a_setting_of_the_gpu_decoder_is_in_its_graph_and_not_in_that_of_the_cpu(name):
    serialised = graph(GPU).serialize()
    assert argument(name, GPU_ONLY[name]) in serialised
    other = dataclasses.replace(GPU, hw_decoder_load=0.5, memory=DecoderMemory(1, 2, 3, 4))
    assert argument(name, GPU_ONLY[name]) not in graph(other).serialize()
    on_cpu = make_decoding_pipeline(lambda: None, 4, dataclasses.replace(GPU, decoder="cpu"))
    assert name.encode() not in on_cpu.serialize()


def test_threads_and_prefetch_are_the_pipelines_and_each_output_type_has_a_graph():
    graphs = [graph(dataclasses.replace(GPU, output=o)) for o in ("float32", "float16", "uint8")]
    assert graphs[0].num_threads == 7
    assert graphs[0].prefetch_queue_depth in (4, {"cpu_size": 4, "gpu_size": 4})
    assert len({re.sub(rb"__\w+?_\d+", b"", one.serialize()) for one in graphs}) == 3


def draw(stream, output: str) -> torch.Tensor:
    other = dataclasses.replace(IMAGENET, mean=IMAGENET.mean + 9, std=IMAGENET.std + 9)
    settings = DecodeSettings("cpu", CPU, 1, output=output, normalisation=other)
    with closing(Loader(stream, [np.arange(12)], 1, 12, settings)) as loader:
        return next(loader).images


@pytest.mark.parametrize("output, dtype, tolerance", [
    ("uint8", torch.float32, 1e-6),  # 0 on CPU
    ("float16", torch.float16, 2e-3),  # half a step of fp16 at 2.6, the greatest value
])  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_pixels_are_the_same_whatever_they_travel_as(
    small_data, output, dtype, tolerance, training
):
    manifest = open_manifest(small_data, "train")
    stream = (
        TrainStream(manifest, RandomResizedCrop(32, color_std=0.1), 0)
        if training
        else ValStream(manifest, CenterCrop(32, 36))
    )
    reference, images = draw(stream, "float32"), draw(stream, output)
    assert images.dtype == dtype
    assert images.shape == (12, 3, 32, 32)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not images.is_contiguous()
    assert (images.float() - reference).abs().max() <= tolerance


@pytest.mark.parametrize("output", ["uint8", "float16"])
def test_a_run_trains_and_validates_on_other_output_types(small_data, tmp_path, output):
    run = train_here(small_data, tmp_path, f"--data.output={output}")
    assert "finished: top-1" in (run / "log.txt").read_text()


def test_hints_are_the_largest_sides_and_the_paddings_follow_the_largest_image(small_data):
    train, val = open_manifest(small_data, "train"), open_manifest(small_data, "val")
    found = decoder_memory(DataConfig(), (train, val))
    assert found.width == max(train.widths.max(), val.widths.max())
    assert found.height == max(train.heights.max(), val.heights.max())
    assert found.device_padding_bytes == 16 * 2**20  # small images: DALI's own
    assert decoder_memory(DataConfig(), ()) == DecoderMemory(0, 0)
    given = DataConfig(preallocate=(5980, 6430), host_padding_bytes=5)
    assert decoder_memory(given, (train,)) == DecoderMemory(5980, 6430, 6 * 5980 * 6430, 5)


def test_the_settings_of_the_configuration_are_those_of_the_loader(small_data, tmp_path):
    config = config_of(
        small_data, tmp_path, "--data.hw_decoder_load=0.99", "--data.preallocate=[640,480]",
        "--data.device_padding_bytes=1", "--data.host_padding_bytes=2", "--data.output=uint8",
        "--data.prefetch_batches=5", "--data.threads=3",
    )  # fmt: skip
    assert choose_decoding(config.data, CPU, Share(8, 0)) == DecodeSettings(
        "cpu", CPU, 3, 5, "uint8", 0.99, DecoderMemory(640, 480, 1, 2)
    )


@pytest.mark.parametrize("wrong, message", [
    ({"hw_decoder_load": 1.5}, r"data.hw_decoder_load=1.5 must lie in \[0, 1\]"),
    ({"preallocate": (0, 5)}, r"data.preallocate=\[0,5\] must hold"),
    ({"host_padding_bytes": -1}, "data.host_padding_bytes=-1 must be at least 0"),
])  # fmt: skip
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(**wrong)


def test_float16_images_without_mixed_precision_are_refused():
    with pytest.raises(ConfigError, match="data.output=float16 needs mixed precision"):
        Config(data=DataConfig(output="float16"), optim=OptimConfig(amp="off"))
