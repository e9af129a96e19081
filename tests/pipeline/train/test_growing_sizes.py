"""Runs whose crops grow: resumed, on other ranks, past bad files, tried before the first step."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from one_process import config_of, evaluate_here, train_here
from run_files import curves, differences, metrics, newest_checkpoint, state_differences

from pipeline.data.dali import DecodeSettings, graph
from pipeline.data.index.manifest import open_manifest
from pipeline.data.order import epoch_permutation
from pipeline.ranks.world import World
from pipeline.system.failure import Reported, StopSignal, TrainingError
from pipeline.train import preflight, run
from pipeline.train.feed import Feed
from pipeline.train.trainer import Trainer

SIZES = (
    "--data.image_sizes={0: 16, 1: 20, 2: 32}", "--data.val_size=40", "--data.val_resize=44",
)  # fmt: skip
GROWING = (
    *jobs.RESUMABLE, *SIZES, "--data.local_batch_size=4", "--run.log_every_steps=1",
    "--run.keep_checkpoints=20",
)  # fmt: skip
BY_STEP = [16] * 7 + [20] * 6 + [32] * 6
"""50 images an epoch in steps of 8: the steps 6 and 12 hold images of two epochs."""
CPU = DecodeSettings("cpu", torch.device("cpu"), 1)


def sizes_said(folder: Path) -> list[int]:
    return [line["image_size"] for line in metrics(folder) if line["event"] == "train"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of every graph that is made."""
    made: list[Any] = []
    real = graph.make_pipeline
    monkeypatch.setattr(graph, "make_pipeline", lambda *given: made.append(given) or real(*given))
    return made


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(step, side) of every micro-batch that is trained on."""
    seen: list[tuple[int, int]] = []
    real = Feed.next

    def recorded(feed: Feed, step: int, *more: Any, **named: Any) -> Any:
        batch, decision = real(feed, step, *more, **named)
        seen.append((step, batch.images.shape[-1]))
        return batch, decision

    monkeypatch.setattr(Feed, "next", recorded)
    return seen


@pytest.fixture(scope="module")
def alone(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one process, two micro-batches a step, that nothing interrupted."""
    return train_here(small_data, tmp_path_factory.mktemp("alone"), *GROWING)


def test_each_line_of_metrics_says_the_size_of_its_step(alone):
    assert sizes_said(alone) == BY_STEP
    assert [value for _, value in curves(alone)["train/image_size"]] == BY_STEP
    said = (alone / "log.txt").read_text()
    assert "training crops: 16 px from step 0 on, 20 px from step 7 on, 32 px from step 13" in said
    assert [line["images"] for line in metrics(alone) if line["event"] == "val"] == [30] * 3


@pytest.mark.parametrize("step", [7, 10])
def test_a_run_resumed_where_a_size_begins_or_amid_it_ends_with_the_same_bits(
    small_data, tmp_path, alone, made, trained_on, step
):
    begun = f"--resume={alone}/checkpoints/step-{step:09d}.pt"
    resumed = train_here(small_data, tmp_path, *GROWING, begun)
    assert state_differences(resumed, alone) == []
    assert sizes_said(resumed) == BY_STEP[step:]
    assert trained_on == [(s, BY_STEP[s]) for s in range(step, 19) for _ in range(2)]
    assert len(made) == 2, "one graph for the training, one for its largest images and validations"


def test_a_run_whose_crops_grow_goes_on_with_no_others(small_data, tmp_path, alone):
    begun = f"--resume={alone}/checkpoints/step-000000010.pt"
    message = "data.image_sizes: {'0': 16, '1': 20, '2': 32} in the checkpoint, null now"
    with pytest.raises(Reported, match=message):
        train_here(small_data, tmp_path, *GROWING, begun, "--data.image_sizes=null")


def test_two_ranks_that_are_killed_and_one_that_goes_on_end_with_the_bits_of_one_alone(
    small_data, tmp_path, alone
):
    settings = [*jobs.small_settings(small_data, tmp_path), *GROWING]
    killed = jobs.run([str(jobs.SABOTEUR), "kill-step:15:1", *settings], ranks=2, engine="torch")
    assert -9 in killed.codes, killed.text
    assert sizes_said(tmp_path / "test")[:14] == BY_STEP[:14]
    ended = train_here(small_data, tmp_path, *GROWING)
    assert "= 1 rank x 4 images x 2 accumulated; steps 14 to 19" in (ended / "log.txt").read_text()
    found, wanted = newest_checkpoint(ended), newest_checkpoint(alone)
    for part in ("step", "position", "model", "momentum", "history"):
        assert differences(found[part], wanted[part]) == []
    assert sizes_said(ended) == BY_STEP


def test_a_bad_file_before_a_size_begins_costs_neither_the_run_nor_its_sizes(small_data, tmp_path):
    """It stands in step 6, and graphs hold batches of the next size by then."""
    root = jobs.copy_data(small_data, tmp_path / "data")
    train_set = open_manifest(root, "train")
    bad = int(epoch_permutation(0, 0, len(train_set))[49])
    path = train_set.path(bad)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.rmtree(root / ".trainyard")
    options = (*GROWING, "--data.bad_images=exclude")
    ahead = train_here(root, tmp_path, *options, "--run.name=a", "--data.prefetch_batches=4")
    behind = train_here(root, tmp_path, *options, "--run.name=b", "--data.prefetch_batches=1")
    assert newest_checkpoint(ahead)["excluded"]["train"] == [[bad, 56, 49]]
    assert sizes_said(ahead) == BY_STEP
    assert state_differences(ahead, behind) == []


def test_a_size_behind_the_end_of_a_run_in_steps_is_refused(small_data, tmp_path):
    message = (
        r"data.image_sizes={0: 16, 2: 32} begins 32 px with epoch 2, step 13, and the run has "
    )
    with pytest.raises(Reported, match=message + "9 steps; take that epoch out"):
        train_here(
            small_data, tmp_path, "--data.image_sizes={0: 16, 2: 32}", "--schedule.epochs=null",
            "--schedule.steps=9",
        )  # fmt: skip


# Before the first step.


def opened(data: Path, runs: Path, *options: str) -> Trainer:
    config = config_of(data, runs, *GROWING, *options)
    train_set, val_set = open_manifest(data, "train"), open_manifest(data, "val")
    trainer = Trainer(config, World(), CPU, train_set, val_set, StopSignal())
    trainer.join_ranks()
    return trainer


@pytest.mark.parametrize(
    ("options", "side"), [((), 40), (("--data.image_sizes={0: 16, 1: 48}",), 48)]
)
def test_the_largest_images_are_decoded_to_the_largest_size(
    small_data, tmp_path, monkeypatch, options, side
):
    shapes, real = [], graph.graph_inputs
    monkeypatch.setattr(
        graph, "graph_inputs", lambda one, *more: shapes.append(one.plan.shape) or real(one, *more)
    )
    trainer = opened(small_data, tmp_path, *options)
    with closing(trainer.loaders.passes) as passes:
        preflight.decode_largest(trainer.train_set, trainer.config.data, passes)
    assert shapes == [(side, side)]


@pytest.mark.parametrize("sums", ["fixed", "fast"])
def test_a_step_that_is_tried_changes_nothing(small_data, tmp_path, sums):
    trainer = opened(small_data, tmp_path, f"--run.sums={sums}")
    state, seen = trainer.state, []
    state.model.register_forward_hook(lambda _, given, __: seen.append(given[0].shape))
    state.model.eval()
    before, draws = state.take(World()), torch.get_rng_state()
    gradients = [one.grad for one in state.model.parameters()]
    preflight.try_step(state, CPU, 4, 32)
    assert seen == [(4, 3, 32, 32)]
    assert differences(state.take(World()), before) == []
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(a is b.grad for a, b in zip(gradients, state.model.parameters(), strict=True))
    assert not state.model.training


def test_memory_that_does_not_suffice_for_the_largest_size_is_said_with_the_cure(
    small_data, tmp_path, monkeypatch
):
    trainer = opened(small_data, tmp_path)

    def short(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.setattr(trainer.state, "forward", short)
    with pytest.raises(TrainingError) as error:
        preflight.try_step(trainer.state, CPU, 4, 32)
    assert str(error.value) == (
        "a micro-batch of 4 images of 32 pixels a side, the largest of data.image_sizes, cannot be "
        "trained: CUDA out of memory; lower data.local_batch_size, which leaves the images of a "
        "step as they are"
    )


@pytest.mark.parametrize(
    ("options", "step", "device", "tried"),
    [
        ((), 0, "cuda", [(4, 32)]),
        ((), 12, "cuda", [(4, 32)]),
        ((), 13, "cuda", []),  # the first step is one of the largest
        ((), 0, "cpu", []),
        (("--data.image_sizes=null",), 0, "cuda", []),
    ],
)
def test_the_step_is_tried_on_a_gpu_that_would_meet_its_size_later(
    small_data, tmp_path, monkeypatch, options, step, device, tried
):
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(run, "decode_largest", lambda *_: None)
    monkeypatch.setattr(run, "try_step", lambda _, __, *given: found.append(given))
    trainer = opened(small_data, tmp_path, *options)
    trainer.state.step = step
    trainer.decode = dataclasses.replace(CPU, device=torch.device(device))
    run._try_largest(trainer)
    assert found == tried


@pytest.mark.gpu
@pytest.mark.parametrize("options", [(), ("--model.graphs=true",), ("--data.decode=cpu",)])
def test_on_a_gpu_a_run_grows_too(small_data, tmp_path, options):
    folder = train_here(small_data, tmp_path, *GROWING, "--run.device=cuda", *options)
    assert sizes_said(folder) == BY_STEP


# Validation at a size of its own.


def test_a_checkpoint_is_tested_at_the_size_it_was_validated_at(alone, tmp_path):
    checkpoint = f"--checkpoint={alone}/checkpoints/step-000000019.pt"
    result = tmp_path / "result.json"
    evaluate_here(checkpoint, f"--json={result}")
    found = json.loads(result.read_text())
    last = [line for line in metrics(alone) if line["event"] == "val"][-1]
    assert (found["top1"], found["loss"]) == (last["top1"], pytest.approx(last["loss"]))
    assert found["config"]["data"]["val_size"] == 40 and found["changed"] == {}
    evaluate_here(checkpoint, f"--json={result}", "--data.val_size=36", "--bn-images=16")
    assert json.loads(result.read_text())["changed"] == {"data.val_size": 36}
    with pytest.raises(Reported) as error:
        evaluate_here(checkpoint, "--data.image_size=36")
    assert str(error.value) == (
        f"data.image_size=36 is not the side of the views that {alone}/checkpoints/"
        "step-000000019.pt is validated on, which is data.val_size=40; set that"
    )
