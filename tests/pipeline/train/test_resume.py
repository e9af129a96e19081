"""A run that is killed again and again ends with the bits of one that never was.

One run, started six times under the same name on either engine, is killed in five ways; the tests
below look at what each start left and at the end.
"""

import random
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jobs
import pytest
import torch
from jobs import SABOTEUR, resumable, wait_for
from run_files import checkpoint_steps, curves, image_steps, metrics, state_differences

from pipeline.config.reading import load_config
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.index.manifest import open_manifest
from pipeline.model.norm import norm_layers, running_statistics
from pipeline.ranks.places import Share
from pipeline.ranks.world import World
from pipeline.system.failure import StopSignal
from pipeline.system.launched import Engine
from pipeline.train.folder import RunFolder
from pipeline.train.run import _decided_alike
from pipeline.train.trainer import Trainer

KILLED = -9


@dataclass(frozen=True)
class Start:
    """How one start of the run ended: `codes` by rank (horovodrun's alone if it started them)."""

    codes: list[int]
    text: str
    failure: str
    ended_at: float
    partial_files: int
    """Checkpoints that were cut while written."""

    @property
    def killed_at(self) -> float:
        """When the saboteur killed its rank."""
        return float(re.findall(r"saboteur: killed at (\S+)", self.text)[-1])


class Run:
    """A run of `jobs.resumable` settings, started as often as needed."""

    def __init__(self, data: Path, runs: Path, seed: int) -> None:
        self.path = runs / "test"
        self.seed = seed
        self.settings = resumable(data, runs)
        self.starts: dict[str, Start] = {}

    def under_horovodrun(self, name: str, fault: str) -> None:
        """Starts the run with a fault as a user starts it."""
        job = jobs.horovodrun([str(SABOTEUR), fault, *self.settings])
        text = jobs.finish(job)
        self._ended(name, [job.returncode], text)

    def under_horovodrun_killed(self, name: str, from_step: int) -> None:
        """Kills horovodrun itself once there is a checkpoint of `from_step` or later."""
        job = jobs.horovodrun([str(SABOTEUR), "slow-step:0.2:all", *self.settings])
        wait_for(
            lambda: max(checkpoint_steps(self.path), default=0) >= from_step or job.poll(),
            f"a checkpoint of step {from_step}",
        )
        job.kill()
        text = jobs.finish(job)
        self._ended(name, [job.returncode], text)

    def on_own_ranks(
        self, name: str, *command: str, engine: Engine, options: Sequence[str] = ()
    ) -> None:
        """Starts the run so that each rank's exit code is kept."""
        ranks = jobs.run([*command, *self.settings, *options], ranks=2, engine=engine)
        self._ended(name, ranks.codes, ranks.text)

    def _ended(self, name: str, codes: list[int], text: str) -> None:
        cause = RunFolder(self.path).first_cause() or ""
        cut = len(list((self.path / "checkpoints").glob(".partial-*")))
        self.starts[name] = Start(codes, text, cause, time.time(), cut)

    @property
    def told(self) -> str:
        """What a failed assertion shows: how to have the same run again, and all its output."""
        told = "\n".join(f"-- {name}: {s.codes}\n{s.text}" for name, s in self.starts.items())
        return f"seed {self.seed}\n{told}"


@pytest.fixture(scope="module")
def killed(small_data, tmp_path_factory):
    """The run after six starts. Steps and ranks are new ones each time the tests run."""
    seed = random.SystemRandom().randrange(10**6)
    draw = random.Random(seed)
    runs = tmp_path_factory.mktemp("killed")
    run = Run(small_data, runs, seed)
    run.under_horovodrun("one rank", f"kill-step:{draw.randint(1, 6)}:1")
    fault = f"kill-validate:1:{draw.randint(0, 1)}"
    run.on_own_ranks("in validation", str(SABOTEUR), fault, engine="torch")
    fault = f"kill-step:{draw.randint(8, 11)}:all"
    run.on_own_ranks("all ranks", str(SABOTEUR), fault, engine="horovod")
    run.under_horovodrun_killed("horovodrun", from_step=draw.randint(12, 14))
    # Cut at an odd step, which no later start saves: whatever is left of it would stay for ever.
    odd = 1 + checkpoint_steps(run.path)[-1] % 2
    every_step = "--run.checkpoint_every_steps=1"
    fault = f"kill-save:{odd}:0"
    run.on_own_ranks("in a save", str(SABOTEUR), fault, engine="torch", options=[every_step])
    run.on_own_ranks("to the end", "-m", "pipeline.train", engine="torch")
    yield run
    shutil.rmtree(runs)


def test_every_start_was_killed_as_intended(killed):
    codes = {name: start.codes for name, start in killed.starts.items()}
    assert codes.pop("one rank") == [1], killed.told
    assert sorted(codes.pop("in validation")) == [KILLED, 1], killed.told
    assert codes == {
        "all ranks": [KILLED, KILLED], "horovodrun": [KILLED], "in a save": [KILLED, 1],
        "to the end": [0, 0],
    }, killed  # fmt: skip
    assert killed.starts["in a save"].partial_files == 1


def test_a_killed_rank_ends_the_job_within_seconds_and_is_named(killed):
    start = killed.starts["one rank"]
    assert start.ended_at - start.killed_at < 30, killed.told
    lines = [line.removeprefix("[0]<stderr>:") for line in start.text.splitlines()]
    last = [line for line in lines if line.startswith("error:")][-1]
    assert re.match(r"error: .*rank 1 \(process \d+\) on \S+ died without a word, killed by", last)
    assert "rank 1 (process" in start.failure, killed.told


def test_whoever_is_left_names_the_rank_that_died(killed):
    for name in ("in validation", "in a save"):
        start = killed.starts[name]
        dead = start.codes.index(KILLED)
        assert start.ended_at - start.killed_at < 30, killed.told
        assert f"error: rank {1 - dead}: rank {dead} (process" in start.text, killed.told
        assert f"rank {dead} (process" in start.failure, killed.told


def test_the_killed_run_ends_with_the_bits_and_metrics_of_the_uninterrupted_one(
    killed, uninterrupted
):
    assert checkpoint_steps(killed.path)[-1] == 19
    assert state_differences(killed.path, uninterrupted) == [], killed.told
    lines = metrics(killed.path)
    assert lines == metrics(uninterrupted), killed.told
    steps = {event: [m["step"] for m in lines if m["event"] == event] for event in ("train", "val")}
    assert steps == {"train": [3, 6, 9, 12, 15, 18, 19], "val": [7, 13, 19]}
    assert (lines[-1]["event"], lines[-1]["step"]) == ("done", 19)


def test_tensorboard_shows_each_step_of_the_killed_run_once(killed, uninterrupted):
    shown = curves(killed.path)
    assert shown == curves(uninterrupted), killed.told
    assert [step for step, _ in shown["train/loss"]] == [24, 48, 72, 96, 120, 144, 152]
    images = image_steps(killed.path)
    assert len(images) == len(set(images)) > 0, killed.told


def test_nothing_of_the_failures_is_left(killed):
    assert not (killed.path / "failure.txt").exists()
    assert killed.starts["to the end"].partial_files == 0, killed.told
    assert len(checkpoint_steps(killed.path)) == 3


def test_saving_at_random_extra_moments_changes_no_bit(small_data, tmp_path, uninterrupted):
    # By rank 0's clock, so that the steps are other ones each time; a step can take a few ms.
    often = ["--run.checkpoint_every_steps=null", "--run.checkpoint_every_sec=0.002"]
    ranks = jobs.run(["-m", "pipeline.train", *resumable(small_data, tmp_path), *often], ranks=2)
    assert ranks.codes == [0, 0], ranks.text
    assert checkpoint_steps(tmp_path / "test") != [7, 13, 19], "no save inside an epoch"
    assert state_differences(tmp_path / "test", uninterrupted) == [], ranks.text
    assert metrics(tmp_path / "test") == metrics(uninterrupted)
    shutil.rmtree(tmp_path)


def made_trainer(data: Path, runs: Path, *options: str) -> Trainer:
    """A trainer of one rank before its first step."""
    config = load_config([*jobs.small_settings(data, runs), *options], "test", "")
    train_set = open_manifest(data, "train")
    val_set = open_manifest(data, "val", classes=train_set.classes)
    decode = choose_decoding(config.data, torch.device("cpu"), Share(cores=1, gpu=0))
    return Trainer(config, World(), decode, train_set, val_set, StopSignal())


def test_a_checkpoint_carries_the_loss_scale(small_data, tmp_path):
    # The runs above train in bf16, which has none; fp16 on a CPU would take minutes.
    job, other = (made_trainer(small_data, tmp_path, "--optim.amp=fp16") for _ in range(2))
    state = job.state.precision.state_dict()
    state |= {"steps": 9, "skipped_steps": 3, "skipped_in_a_row": 1}
    state["scaler"] |= {"scale": 512.0, "_growth_tracker": 7}
    job.state.precision.load_state_dict(state)
    other.state.restore(job.content(), World())
    assert other.state.precision.state_dict() == state


def test_ranks_agree_on_what_computes_the_norm_layers(small_data, tmp_path):
    job = made_trainer(small_data, tmp_path)
    assert _decided_alike(job)["norm layer"] == "reference"
    next(norm_layers(job.state.model)).compute = with_triton
    assert _decided_alike(job)["norm layer"] == "with_triton"


def with_triton() -> None:
    """Stands for another rank's arithmetic."""


@pytest.mark.parametrize(("sums", "own"), [("fast", True), ("fixed", False)])
def test_only_fast_sums_go_on_with_each_ranks_own_statistics(small_data, tmp_path, sums, own):
    """Ranks that summed fast have different ones; with fixed sums all must have the same."""
    content = made_trainer(small_data, tmp_path, "--run.sums=fast").content()
    of_model = torch.cat([one.flatten() for one in running_statistics_of(content["model"])])
    content["rank_statistics"] = torch.full((1, len(of_model)), 7.0)
    job = made_trainer(small_data, tmp_path, f"--run.sums={sums}")
    job.state.restore(content, World())
    found = torch.cat([one.flatten() for one in running_statistics(job.state.model)])
    assert torch.equal(found, torch.full_like(of_model, 7.0) if own else of_model)


def running_statistics_of(model: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return [tensor for name, tensor in model.items() if name.endswith(("_mean", "_var"))]
