"""What a GPU is told before it trains."""

import dataclasses

import pytest
import torch

from pipeline.config import Config, ModelConfig, OptimConfig, RunConfig
from pipeline.train.gpu import choose_algorithms, described


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts cuDNN's choice back afterwards."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


@pytest.mark.usefixtures("benchmark")
@pytest.mark.parametrize("autotune", [True, False])
def test_cudnn_tries_its_algorithms_on_a_gpu_unless_told_not_to(autotune):
    config = dataclasses.replace(Config(), run=RunConfig(autotune=autotune))
    torch.backends.cudnn.benchmark = not autotune
    choose_algorithms(config, torch.device("cuda", 0))
    assert torch.backends.cudnn.benchmark is autotune


@pytest.mark.usefixtures("benchmark")
def test_on_a_cpu_nothing_is_set():
    choose_algorithms(Config(), torch.device("cpu"))
    assert torch.backends.cudnn.benchmark is False


@pytest.mark.parametrize(
    ("amp", "autotune", "graphs", "said"),
    [
        ("bf16", True, False, "TF32 off, cuDNN's algorithms: the fastest of each shape"),
        ("tf32", False, False, "TF32 on, cuDNN's algorithms: its first choice"),
        (
            "off",
            False,
            True,
            "TF32 off, cuDNN's algorithms: its first choice, each stage a CUDA graph",
        ),
    ],
)
def test_the_log_says_how_a_gpu_computes(amp, autotune, graphs, said):
    config = Config(
        model=ModelConfig(graphs=graphs), optim=OptimConfig(amp=amp),
        run=RunConfig(autotune=autotune),
    )  # fmt: skip
    assert described(config) == said
