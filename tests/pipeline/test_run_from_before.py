"""A run that was stopped under an earlier version resumes and ends with that version's bits.

fixtures/stopped_run holds 36 + 12 drawn JPEGs, and the folder of a run of ResNet-8 on them (lr
warm-up, two micro-batches a step, a drop to come) that SIGTERM stopped in its second epoch, before
step 7 of 18, between two lines of metrics. TensorBoard's files and the older checkpoints are left
out. `expected.json` holds how the same version ended it.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch

FIXTURE = Path(__file__).parent / "fixtures" / "stopped_run"
EXPECTED = json.loads((FIXTURE / "expected.json").read_text(encoding="utf-8"))

# Another CPU or torch rounds otherwise. With other instruction sets (ATEN_CPU_CAPABILITY=default,
# ONEDNN_MAX_CPU_ISA=SSE41 or AVX2) the sums and norms below moved by up to 1.1e-5 in `model` and
# 3.3e-4 in `momentum` (`distances`). These are about ten times that. A run that resumes without its
# velocity or with other images has a tensor that is off by 0.18 and more; 1% more lr gives 0.05.
TOLERANCE = {"model": 1e-4, "momentum": 3e-3}


@dataclass(frozen=True)
class Ended:
    """The run after the present version has finished it."""

    path: Path
    text: str
    stored: list[str]
    checkpoint: dict[str, Any]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The stored run, copied elsewhere and trained to its end.

    Of the copy, lines have no shares of the step, and the checkpoint says nothing of excluded
    images: still older versions wrote neither.
    """
    root = tmp_path_factory.mktemp("from_before")
    shutil.copytree(FIXTURE, root, dirs_exist_ok=True)
    run = root / "runs" / "stopped"
    old_lines = [json.loads(line) for line in lines(run)]
    stored = [json.dumps({n: v for n, v in old.items() if "share" not in n}) for old in old_lines]
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in stored), encoding="utf-8")
    (checkpoint,) = (run / "checkpoints").glob("step-*.pt")
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    del content["excluded"]
    torch.save(content, checkpoint)
    places = [f"--data.root={root / 'data'}", f"--run.dir={root / 'runs'}"]
    # Fixed sums are younger than the run: its bits are those of fast ones.
    options = ["--config", str(run / "config.yaml"), "--run.sums=fast", *places]
    ranks = jobs.run(["-m", "pipeline.train", *options])
    assert ranks.codes == [0], ranks.text
    newest = max((run / "checkpoints").glob("step-*.pt"))
    newest_content = torch.load(newest, map_location="cpu", weights_only=True)
    yield Ended(run, ranks.text, stored, newest_content)
    shutil.rmtree(root)


def made_with(checkpoint: dict[str, Any]) -> dict[str, str]:
    """What the bits of a training on a CPU depend on, besides its settings."""
    cpu: dict[str, str] = {}  # of the first core
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        cpu[name.strip()] = value.strip()
    versions = {
        name: version
        for name, version in checkpoint["versions"].items()
        if name == "torch" or name.startswith("nvidia-dali")
    }
    kind = {name: cpu.get(name, "") for name in ("model name", "cpu family", "model")}
    return versions | kind | {"instructions": torch.backends.cpu.get_cpu_capability()}


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names and bytes, in the order of names."""
    summary = hashlib.sha256()
    for name in sorted(tensors):
        summary.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    return summary.hexdigest()


def sum_and_norm(tensor: torch.Tensor) -> list[float]:
    """Float64 sum and L2 norm."""
    return [float(tensor.double().sum()), float(tensor.double().norm())]


def distances(part: str, checkpoint: dict[str, Any]) -> dict[str, float]:
    """How far each tensor's sum and norm are from the expected ones, by name.

    As shares of the norm, that of the sum further divided by the root of the number of elements:
    |sum(d)| <= sqrt(n) |d|.
    """
    found = {}
    for name, (total, norm) in EXPECTED[part].items():
        tensor = checkpoint[part][name]
        own_total, own_norm = sum_and_norm(tensor)
        off = max(abs(own_norm - norm), abs(own_total - total) / tensor.numel() ** 0.5)
        found[name] = off / norm if norm else off
    return found


def lines(run: Path) -> list[str]:
    """The lines of a run's metrics as they stand."""
    return (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def test_it_resumes_from_the_stored_checkpoint(ended):
    stored = ended.path / "checkpoints" / "step-000000007.pt"
    assert f"resuming from {stored} at step 7" in ended.text
    assert ended.checkpoint["step"] == EXPECTED["step"]


def test_its_metrics_continue_after_the_stored_lines(ended):
    # These have their times in them: a run from scratch would have others.
    written = lines(ended.path)
    assert len(ended.stored) == 2 and written[:2] == ended.stored
    events = [(line["event"], line["step"]) for line in map(json.loads, written[2:])]
    assert events == [
        ("start", 7), ("train", 8), ("val", 9), ("train", 12), ("val", 14), ("train", 16),
        ("train", 18), ("val", 18), ("done", 18),
    ]  # fmt: skip


@pytest.mark.parametrize("part", ["model", "momentum"])
def test_it_ends_with_the_weights_and_velocity_of_the_version_that_began_it(ended, part):
    tensors = ended.checkpoint[part]
    assert tensors.keys() == EXPECTED[part].keys()
    off = {name: far for name, far in distances(part, ended.checkpoint).items()
           if far > TOLERANCE[part]}  # fmt: skip
    assert off == {}, "beyond what rounding explains"
    if made_with(ended.checkpoint) == EXPECTED["made_with"]:
        assert digest(tensors) == EXPECTED["sha256"][part], "not the same bits"


def test_its_validations_count_as_before(ended):
    # With the other instruction sets above the counts were the same.
    history = ended.checkpoint["history"]
    assert [result["top1_correct"] for result in history] == EXPECTED["top1_correct"]
