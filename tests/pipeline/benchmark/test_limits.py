"""`benchmark all` and `benchmark model`: real loaders, models and ranks, of which one is slowed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import jobs
import made_runs
import pytest
from terminal import on_terminal

from pipeline.benchmark import all as everything
from pipeline.benchmark import allreduce, model
from pipeline.benchmark.__main__ import parse
from pipeline.benchmark.passes import loader_shares
from pipeline.benchmark.processes import start
from pipeline.benchmark.result import Spread
from pipeline.data.index.manifest import Manifest
from pipeline.model.resnet import ResNet

DELAY_SEC = 0.15
TINY = (
    "--data.image_size=32", "--data.local_batch_size=4", "--model.family=cifar", "--model.depth=8",
    "--run.threads=1", "--run.device=cpu", "--rounds=1", "--round_sec=0.02",
)  # fmt: skip


def measured(*options: str):
    """The result of `benchmark all` in this process."""
    _, found, _ = parse(["all", *TINY, "--files=12", "--data.threads=1", *options])
    return everything.run(found)


def slowed(monkeypatch, owner, name: str, seconds: float) -> None:
    """Every call of the real method takes longer."""
    real = getattr(owner, name)

    def slow(*args):
        time.sleep(seconds)
        return real(*args)

    monkeypatch.setattr(owner, name, slow)


def test_a_slowed_loader_is_input_bound_and_its_reading_named(monkeypatch, one_thread):
    slowed(monkeypatch, Manifest, "read", 0.2)
    result = measured("--parts=loader,model", "--rounds=3", "--round_sec=0.2")
    assert result.figures["limit"]["kind"] == "input-bound"
    assert "reading takes" in result.figures["verdict"]
    assert result.ratio_value("reading_of_loader") > 0.5
    assert result.ratio_value("loader_vs_model") < 0.9


def test_a_slowed_model_is_model_bound(monkeypatch, one_thread):
    slowed(monkeypatch, ResNet, "forward", 0.5)
    result = measured("--parts=loader,model")
    assert result.figures["limit"]["kind"] == "model-bound"
    assert result.ratio_value("forward_of_step") > 0.5
    assert result.ratio_value("loader_vs_model") > 2


def test_a_slowed_link_is_communication_bound(monkeypatch, one_thread):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("SLOW_LINK_SEC", str(DELAY_SEC))
    monkeypatch.setattr(allreduce, "_REPEATS", (1, 1))
    monkeypatch.setattr(everything, "_SIZES", "4096,1048576")
    monkeypatch.setattr(allreduce, "start", lambda _, *job: start("slow_link_rank", *job))
    result = measured("--parts=model,allreduce", "--run.sums=fast")
    assert result.figures["not_run"] == {}
    assert result.figures["limit"]["kind"] == "communication-bound"
    assert result.figures["allreduce_ms"] > 1e3 * DELAY_SEC
    assert result.ratio_value("exposed_communication_of_step") > 0.2
    assert "twice the images per rank and step" in result.figures["verdict"]
    assert "with gradients at 2 ranks" in result.figures["verdict"]


def test_fixed_sums_in_shared_memory_are_measured_as_such(monkeypatch, one_thread):
    monkeypatch.setattr(everything, "_SIZES", "4096,1048576")
    result = measured("--parts=model,allreduce")
    fit = result.figures["allreduce"]["fit"]["fixed"]
    assert any("fixed sums of gradients, 2 ranks" in line for line in result.text().splitlines())
    least = 1e3 * fit["latency_sec"]
    assert least <= result.figures["allreduce_ms"] < 50 * least + 100


def test_one_process_has_no_link_to_wait_for(one_thread):
    result = measured("--parts=model,allreduce", "--data.local_batch_size=64")
    assert result.figures["not_run"]["allreduce"].startswith("the verdict is for one process")
    assert result.figures["known"]["exposed_communication_share"] is None


@pytest.fixture
def stored(tmp_path, small_data):
    """What a run leaves of its settings: its data, and the ranks of its last start."""
    folder = tmp_path / "runs" / "two"
    folder.mkdir(parents=True)
    settings = f"data: {{root: {small_data}, global_batch_size: 8, local_batch_size: 4}}\n"
    (folder / "config.yaml").write_text(settings)
    starts = [json.dumps(made_runs.start(ranks=ranks)) for ranks in (2, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(starts) + "\n")
    return folder / "config.yaml"


def test_the_data_and_ranks_of_a_stored_run_are_taken(stored, small_data, one_thread):
    result = measured("--parts=loader", f"--config={stored}")
    assert result.figures["files"] == 50
    wide, high = result.figures["mean_width_px"], result.figures["mean_height_px"]
    images = f"images: {small_data}, {wide:.0f}x{high:.0f} px (mean of 50 files)"
    assert images in result.text().splitlines()
    _, options, _ = parse(["all", f"--config={stored}"])
    assert (options.made, options.ranks) == (False, 1)
    (stored.parent / "metrics.jsonl").write_text("")  # as many as the batch is for
    assert parse(["all", f"--config={stored}"])[1].ranks == 2
    settings = stored.read_text()
    stored.write_text("data: {root: /nowhere}\n")  # the run's data are gone
    assert parse(["all", f"--config={stored}"])[1].made
    stored.write_text(settings)
    (stored.parent / "metrics.jsonl").unlink()  # any other YAML
    assert parse(["all", f"--config={stored}"])[1].made


def test_all_shows_where_it_is_and_ends_with_a_verdict(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = tmp_path / "all.json"
    argv = ["-m", "pipeline.benchmark", "all", f"--json={path}", "--files=12", *TINY]
    # The ranks of allreduce run in the test above.
    said, shown = on_terminal([*argv, "--rounds=2", "--parts=loader,model,step,norm"])
    for text in ("loader, its images", "from memory, round 1 of 2", "model, round 2 of 2"):
        assert f"\x1b[Kmeasuring: {text}" in shown
    assert shown.endswith("\r\x1b[K")
    assert "Warning" not in shown + said and "measuring" not in said
    lines = [line for line in said.splitlines() if line.strip()]
    assert lines[0].startswith("CIFAR ResNet-8 A, 4 images of 32 px a step, AMP bf16, 1 thread")
    assert lines[1].startswith("images: made, ") and "mean_width_px" in said
    assert lines[-2].startswith("verdict: ")
    found = json.loads(path.read_text())
    assert {"loader_vs_model", "step_vs_model", "decoding_of_loader"} <= found["ratios"].keys()
    assert found["settings"]["config"]["model"]["depth"] == 8
    raw = found["raw"]
    assert raw["verdict"] == lines[-2]
    assert raw["not_run"] == {"norm": "its kernels need an NVIDIA GPU"}
    assert raw["known"]["loader"] == raw["loader_images_per_sec"]["median"]
    shares = [found["ratios"][f"{part}_of_loader"] for part in ("decoding", "resizing", "reading")]
    assert sum(shares) == pytest.approx(1)
    assert not list(tmp_path.glob("tmp*"))


def test_all_reads_the_data_of_a_root_and_cifars_own_images(small_data, one_thread):
    before = sorted(small_data.rglob("*"))
    result = measured("--parts=loader", f"--data.root={small_data}")
    assert result.figures["files"] == 50
    assert result.figures["verdict"] == "verdict: no verdict, as what the model takes is not known"
    assert sorted(small_data.rglob("*")) == before
    config = str(jobs.REPOSITORY / "configs/paper/cifar10/resnet-20.yaml")
    cifar = measured("--parts=loader,model,step", f"--config={config}")
    assert cifar.figures["limit"]["kind"] != "unknown"
    assert "decoding_of_loader" not in cifar.ratios
    assert cifar.ratio_value("step_vs_model") > 0


def test_model_times_the_phases_of_a_step(one_thread):
    _, options, _ = parse(["model", *TINY, "--rounds=3"])
    found = model.run(options)
    speed, *phases = (
        found.spreads[name].rounds
        for name in ("model_images_per_sec", "forward_sec", "backward_sec", "optimizer_sec")
    )
    assert len(speed) == 3
    for one, *parts in zip(speed, *phases, strict=True):
        assert 4 / one == pytest.approx(sum(parts))
    assert set(found.ratios) == {"forward_of_step", "backward_of_step", "optimizer_of_step"}
    assert found.text().startswith("CIFAR ResNet-8 A, 4 images of 32 px a step, AMP bf16, 1 thread")


@pytest.mark.gpu
def test_model_on_a_gpu_times_by_the_gpus_clock():
    _, options, _ = parse(["model", *TINY, "--rounds=3", "--run.device=cuda"])
    found = model.run(options)
    assert found.settings["device"] == "cuda:0"
    assert all(sec > 0 for sec in found.spreads["backward_sec"].rounds)


def test_the_loaders_time_is_split_whatever_the_noise():
    speeds = {
        "loader_images_per_sec": Spread((100.0, 100.0, 100.0)),
        "from_memory_images_per_sec": Spread((200.0, 80.0, 125.0)),
        "decoding_images_per_sec": Spread((400.0, 200.0, 120.0)),
    }
    found = {name: one.rounds for name, one in loader_shares(speeds).items()}
    assert found["decoding_of_loader"] == pytest.approx((0.25, 0.5, 0.8))
    assert found["resizing_of_loader"] == pytest.approx((0.25, 0.5, 0.0))
    assert found["reading_of_loader"] == pytest.approx((0.5, 0.0, 0.2))


def test_the_configurations_own_settings_stand_unless_given():
    _, options, _ = parse(["all", "--data.image_size=128"])
    assert options.made and options.images == 32
    assert options.config.model.depth == 18 and options.config.data.image_size == 128
    _, options, _ = parse(["all", "--config=configs/resnet50.yaml", "--data.root=x"])
    assert not options.made and options.config.model.depth == 50
