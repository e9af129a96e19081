"""Which norm backend is chosen, and what is said of one that cannot run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch

from pipeline.config import Config, ModelConfig
from pipeline.model.backends import choose_backend, make_norm, problem_of, problems
from pipeline.model.network import make_model
from pipeline.model.norm import norm_layers, reference
from pipeline.train.state import fingerprint

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def not_interpreting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def forget(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `package` be looked for anew."""
    for name in [m for m in sys.modules if m == package or m.startswith(package + ".")]:
        monkeypatch.delitem(sys.modules, name)


def install_apex(folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name, first on the path."""
    for name, source in files.items():
        path = folder / "apex" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    forget("apex", monkeypatch)


NVIDIA = {"__init__.py": "", "contrib/__init__.py": "", "contrib/groupbn/__init__.py": ""}


def test_auto_on_a_cpu_is_the_reference_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="trainyard"):
        config = Config(model=ModelConfig(depth=18))
        model = make_model(config, classes=10, device=CPU)
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


def test_triton_without_a_gpu_names_the_settings() -> None:
    pytest.importorskip("triton")
    message = (
        r"model\.norm=triton cannot run here: .*the device is cpu, set run\.device=cuda .*auto$"
    )
    with pytest.raises(ValueError, match=message):
        make_model(Config(model=ModelConfig(depth=18, norm="triton")), classes=10, device=CPU)


def test_triton_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    forget("triton", monkeypatch)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ValueError, match="Triton is not installed, run pip install triton"):
        choose_backend("triton", CUDA, "bf16")
    with pytest.raises(ValueError, match="backend triton cannot run here: Triton is not installed"):
        make_norm("triton", 8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_does_not_work_is_named_with_its_cause() -> None:
    pytest.importorskip("triton")
    assert "its first kernel failed with " in str(problem_of("triton", CUDA, "bf16"))


def test_the_kernels_refuse_a_cpu_tensor() -> None:
    pytest.importorskip("triton")
    layer = make_norm("triton", 8)
    with pytest.raises(ValueError, match=r"activations on a GPU, not on cpu; set run\.device=cuda"):
        layer(torch.ones(2, 8, 2, 2))


def test_apex_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    forget("apex", monkeypatch)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(
        ValueError, match="NVIDIA's apex is not installed, build it from .* APEX_BNP"
    ):
        choose_backend("apex", CUDA, "fp16")


def test_the_unrelated_apex_of_pypi_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As apex 0.9.10.dev begins; importing it fails wherever pyramid is missing.
    source = "from pyramid_mailer.interfaces import IMailer\n"
    install_apex(tmp_path, {"__init__.py": source, "lib/__init__.py": ""}, monkeypatch)
    with pytest.raises(ValueError, match="apex in .* is not NVIDIA's but the unrelated one"):
        choose_backend("apex", CUDA, "fp16")


def test_apex_without_its_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = {"contrib/groupbn/batch_norm.py": "from . import bnp\n"}
    install_apex(tmp_path, NVIDIA | layer, monkeypatch)
    with pytest.raises(ValueError, match="without its bnp extension .*APEX_BNP=1"):
        choose_backend("apex", CUDA, "fp16")


@pytest.mark.parametrize(
    ("device", "amp", "message"),
    [(CUDA, "bf16", "optim.amp is bf16, set optim.amp=fp16"), (CPU, "fp16", "the device is cpu")],
)
def test_the_limits_of_apex(
    device: torch.device, amp: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_apex(tmp_path, NVIDIA | {"contrib/groupbn/batch_norm.py": ""}, monkeypatch)
    with pytest.raises(ValueError, match=message):
        choose_backend("apex", device, amp)


def test_problems_lists_every_backend() -> None:
    found = problems(CPU, "bf16")
    assert list(found) == ["reference", "triton", "apex"]
    assert found["reference"] is None and found["triton"] and found["apex"]


def test_a_checkpoint_belongs_to_a_run_with_any_backend() -> None:
    assert not [name for name in fingerprint(Config(), {}) if "norm" in name.split(".")]
