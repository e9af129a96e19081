"""What each rank has to itself, under launchers that show it all of a node or its own part."""

import pytest
import torch

from pipeline.ranks.places import Place, Share, choose_device, share_of

ALL_CORES = tuple(range(16))
FOUR_GPUS = ("gpu-a", "gpu-b", "gpu-c", "gpu-d")


@pytest.mark.parametrize(
    ("places", "shares"),
    [
        ([Place("n1", ALL_CORES, FOUR_GPUS)] * 4 + [Place("n2", ALL_CORES, ("gpu-e",))],
         [*(Share(4, gpu) for gpu in range(4)), Share(16, 0)]),  # those of a node divide it
        ([Place("n1", ALL_CORES[4 * i : 4 * i + 4], (gpu,)) for i, gpu in enumerate(FOUR_GPUS)],
         [Share(4, 0)] * 4),  # each sees its own part
        ([Place("n1", ALL_CORES, ()), Place("n2", ALL_CORES, ())], [Share(16, 0)] * 2),
        ([Place("n1", (0,), ())] * 3, [Share(1, gpu) for gpu in range(3)]),  # too few cores
    ],
)  # fmt: skip
def test_ranks_divide_what_they_share(places, shares):
    assert [share_of(places, rank) for rank in range(len(places))] == shares


without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


@without_gpu
def test_a_gpu_that_is_not_there_is_refused_with_the_fix(monkeypatch):
    monkeypatch.setattr("pipeline.system.gpus.container_gpus", lambda: None)
    message = "run.device=cuda, but there is no GPU on .* may use .*; set run.device=auto"
    with pytest.raises(ValueError, match=message):
        choose_device("cuda", 0)
    assert choose_device("auto", 0).type == "cpu"


@without_gpu
def test_a_container_without_gpus_is_told_how_it_gets_them(monkeypatch):
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/trainyard.sif")
    message = "cuda, but no GPU is visible inside this container on .* .start it with --nv after"
    with pytest.raises(ValueError, match=message):
        choose_device("cuda", 0)
    assert choose_device("auto", 0).type == "cpu"
    monkeypatch.setenv("SLURM_STEP_GPUS", "0,1")
    message = "Slurm gave this job GPUs on .*, and the container shows none of them; .* --nv after"
    with pytest.raises(ValueError, match=message):
        choose_device("auto", 0)
    assert choose_device("cpu", 0).type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert choose_device("auto", 0).type == "cpu"


@without_gpu
@pytest.mark.parametrize("choice", ["auto", "cuda"])
def test_a_gpu_that_pytorch_cannot_use_is_not_passed_over(choice, install, monkeypatch):
    install("nvidia-smi", "echo '550.54.15, NVIDIA H200'")
    message = (
        rf"^run.device={choice} on .*: the driver \(550.54.15, .*\) lists 1 GPU \(NVIDIA H200\), "
        "but PyTorch .*; .* or set run.device=cpu to train on the CPU$"
    )
    with pytest.raises(ValueError, match=message):
        choose_device(choice, 0)
    assert choose_device("cpu", 0).type == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert choose_device("auto", 0).type == "cpu"
