"""Which norm backend is chosen, and what is said of one that cannot run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch

from pipeline.config import Config, ModelConfig
from pipeline.model.backends import choose_backend, make_norm, problems
from pipeline.model.norm import norm_layers, reference
from pipeline.model.resnet import make_model
from pipeline.train.state import fingerprint

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
NVIDIA = {"__init__.py": "", "contrib/__init__.py": "", "contrib/groupbn/__init__.py": ""}
LAYER = "contrib/groupbn/batch_norm.py"


@pytest.fixture(autouse=True)
def not_interpreting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def forget(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `package` be looked for again."""
    for name in [m for m in sys.modules if m == package or m.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)


def test_auto_on_a_cpu_is_the_reference_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="trainyard"):
        model = make_model(Config(model=ModelConfig(depth=18)), classes=10, device=CPU)
    assert {layer.compute for layer in norm_layers(model)} == {reference}
    said = [r.getMessage() for r in caplog.records if r.getMessage().startswith("norm layers")]
    assert said == ["norm layers: reference (there is no GPU in use)"]


def test_auto_falls_back_where_triton_fails(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with caplog.at_level(logging.INFO, logger="trainyard"):
        assert choose_backend("auto", CUDA, "bf16") == "reference"
    assert "reference (TRITON_INTERPRET=1 keeps its kernels off the GPU" in caplog.text


def test_triton_where_it_cannot_run_is_named_with_its_cause() -> None:
    pytest.importorskip("triton")
    message = r"model\.norm=triton cannot run here: .*the device is cpu, set run\.device=cuda .*"
    with pytest.raises(ValueError, match=message + "auto$"):
        choose_backend("triton", CPU, "bf16")
    with pytest.raises(ValueError, match=r"activations on a GPU, not on cpu; set run\.device=cuda"):
        make_norm("triton", 8)(torch.ones(2, 8, 2, 2))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="its first kernel failed with "):
            choose_backend("triton", CUDA, "bf16")


@pytest.mark.parametrize("package", ["triton", "apex"])
def test_a_package_that_is_not_installed(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(package, monkeypatch)
    monkeypatch.setattr(sys, "path", [])
    missing = {
        "triton": "Triton is not installed, run pip install triton",
        "apex": "NVIDIA's apex is not installed, build it from .* APEX_BNP",
    }[package]
    with pytest.raises(ValueError, match=missing):
        choose_backend(package, CUDA, "fp16")
    with pytest.raises(ValueError, match=f"backend {package} cannot run here: {missing}"):
        make_norm(package, 8)


@pytest.mark.parametrize(
    ("files", "device", "amp", "message"),
    [
        # As apex 0.9.10.dev of PyPI begins; importing it fails wherever pyramid is missing.
        ({"__init__.py": "from pyramid_mailer.interfaces import IMailer\n"}, CUDA, "fp16",
         "apex in .* is not NVIDIA's but the unrelated one"),
        (NVIDIA | {LAYER: "from . import bnp\n"}, CUDA, "fp16",
         "without its bnp extension .*APEX_BNP=1"),
        (NVIDIA | {LAYER: ""}, CUDA, "bf16", "optim.amp is bf16, set optim.amp=fp16"),
        (NVIDIA | {LAYER: ""}, CPU, "fp16", "the device is cpu"),
    ],
)  # fmt: skip
def test_the_limits_of_apex(
    files: dict[str, str], device: torch.device, amp: str, message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for name, source in files.items():
        path = tmp_path / "apex" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget("apex", monkeypatch)
    with pytest.raises(ValueError, match=message):
        choose_backend("apex", device, amp)


def test_problems_lists_every_backend() -> None:
    found = problems(CPU, "bf16")
    assert list(found) == ["reference", "triton", "apex"]
    assert found["reference"] is None and found["triton"] and found["apex"]


def test_a_checkpoint_belongs_to_a_run_with_any_backend() -> None:
    assert not [name for name in fingerprint(Config(), {}) if "norm" in name.split(".")]
