"""Whose the memory of a GPU is; without one nothing is asked."""

from contextlib import closing

import numpy as np
import pytest
import torch

from pipeline.data.crops import CenterCrop
from pipeline.data.dali import DecodeSettings, Loader
from pipeline.data.index.manifest import open_manifest
from pipeline.data.stream import ValStream
from pipeline.train.metrics import GpuMemory


def test_on_a_cpu_nothing_is_asked():
    memory = GpuMemory(torch.device("cpu"))
    memory.dali_is_ready()
    assert memory.held_bytes(dali_decodes=True) == [0.0, 0.0, 0.0]
    assert not torch.cuda.is_initialized()


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", ["gpu", "cpu"])
def test_on_a_gpu_pytorch_dali_and_others_are_told_apart(small_data, decoder):
    device, batch = torch.device("cuda", 0), 16
    manifest = open_manifest(small_data, "val")
    stream = ValStream(manifest, CenterCrop(224, 224))
    torch.zeros(1, device=device)
    memory = GpuMemory(device)
    how = DecodeSettings(decoder, device, 2)
    chunks = (np.arange(batch) for _ in range(4))
    with closing(Loader(stream, chunks, 4, batch, how)) as loader:
        images = next(loader).images
        torch.cuda.synchronize()
        memory.dali_is_ready()
        before = memory.held_bytes(decoder == "gpu")
        held = torch.empty(2**29, dtype=torch.uint8, device=device)
        after = memory.held_bytes(decoder == "gpu")
    if decoder == "gpu":
        assert before[1] >= images.nbytes
    else:
        assert before[1] == 0.0
    assert before[2] > 0  # the CUDA context
    assert after[0] - before[0] >= held.nbytes
    assert after[1] == before[1]
    assert abs(after[2] - before[2]) < 2**28  # DALI works ahead meanwhile
