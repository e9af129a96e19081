"""The average of the weights: the references' numbers, and a part of the run like the weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from jobs import SABOTEUR, resumable
from one_process import config_of, evaluate_here, train_here
from run_files import curves, differences, metrics, newest_checkpoint, state_differences
from torch import nn
from weight_files import write_checkpoint

from pipeline.config import OptimConfig
from pipeline.config.reading import load_config
from pipeline.data.dali.settings import choose_decoding
from pipeline.data.index.manifest import open_manifest
from pipeline.model.norm import running_statistics
from pipeline.ranks.places import Share
from pipeline.ranks.world import World
from pipeline.report.runs import read_run
from pipeline.report.tables import Result
from pipeline.runs.listing import as_json, describe, list_runs
from pipeline.system.failure import Reported, StopSignal
from pipeline.train.checkpoint import read, read_verified, write_atomically
from pipeline.train.ema import WeightAverage, decay_of
from pipeline.train.metrics import Validation, is_best
from pipeline.train.rank_statistics import portable_state
from pipeline.train.saving import CheckpointFolder
from pipeline.train.trainer import Trainer

EMA = ("--optim.ema_decay=0.9", "--optim.ema_every_steps=2")

# Of torch 2.14.1: AveragedModel with get_ema_multi_avg_fn(0.9), weights 1 to 5.
OF_TORCH = [1, 1.100000023841858, 1.290000081062317, 1.561000108718872, 1.904900074005127]
# Of timm 1.0.31: ModelEmaV3(decay=0.9, use_warmup=True), gamma 1 and power 2/3, steps 1 to 5.
OF_TIMM = [1, 1.629960536956787, 2.288606882095337, 2.967773675918579, 3.662785291671753]
DECAYS_OF_TIMM = [0, 0.3700394750525634, 0.5192501432308638, 0.6031497370079502, 0.6580048106646605]


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def average_of(model: nn.Module, other: nn.Module, **settings: Any) -> WeightAverage:
    return WeightAverage(OptimConfig(**settings), model, other, alike=True)


def followed(warmup: bool) -> list[float]:
    model, other = nn.Linear(1, 1), nn.Linear(1, 1)
    average, found = average_of(model, other, ema_decay=0.9, ema_warmup=warmup), []
    for step in range(1, 6):
        nn.init.constant_(model.weight, step)
        average.update(step)
        found.append(other.weight.item())
    return found


def test_the_average_is_that_of_torch_and_with_the_warm_up_that_of_timm():
    assert followed(warmup=False) == pytest.approx(OF_TORCH, rel=1e-6)
    assert followed(warmup=True) == pytest.approx(OF_TIMM, rel=1e-6)
    optim = OptimConfig(ema_decay=0.9, ema_warmup=True)
    assert [decay_of(n, optim) for n in range(1, 6)] == pytest.approx(DECAYS_OF_TIMM, rel=1e-12)
    assert decay_of(1000, optim) == 0.9


def test_weights_and_running_statistics_are_averaged_as_torchs_own_class_does():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model, other = network().train(), network(seed=1)
    wanted = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7), use_buffers=True)
    average = average_of(model, other, ema_decay=0.7)
    for step in range(1, 5):
        model(torch.randn(8, 3, 4, 4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(step)
        wanted.update_parameters(model)
    found = average.state(4, World())["model"]
    for name, value in wanted.module.state_dict().items():
        if name.endswith("num_batches_tracked"):  # torch's rounds an average of counts down
            assert found[name] == 4
        else:
            assert torch.equal(found[name], value), name


def test_it_is_updated_every_so_many_steps_and_before_that_it_is_the_weights():
    model, other = network(), network(seed=1)
    average = average_of(model, other, ema_decay=0.5, ema_every_steps=3)
    nn.init.constant_(model[3].bias, 1.0)
    assert set(average.state(2, World())["model"]["3.bias"].tolist()) == {1.0}
    seen = []
    for step in range(1, 8):
        nn.init.constant_(model[3].bias, step)
        average.update(step)
        seen.append(float(average.state(step, World())["model"]["3.bias"][0]))
    assert seen == [1, 2, 3, 3, 3, 4.5, 4.5]


def test_checkpoints_hold_the_mean_over_ranks_of_its_running_statistics():
    model = network()
    gathered = torch.tensor([[1.0] * 4 + [4.0] * 4, [3.0] * 4 + [2.0] * 4])
    state = portable_state(model, gathered)
    assert state["1.running_mean"].tolist() == [2.0] * 4
    assert state["1.running_var"].tolist() == [3.0] * 4
    assert running_statistics(model)[0].tolist() == [0.0] * 4  # the model's own are as they were


@pytest.mark.gpu
def test_an_update_waits_for_nothing_on_the_device():
    device = torch.device("cuda")
    model, other = network().to(device), network(seed=1).to(device)
    average = average_of(model, other, ema_decay=0.5, ema_warmup=True)
    average.update(1)
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 5):
            average.update(step)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    for own, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(own, theirs)


# In a trainer.


def made_trainer(data: Path, runs: Path, *options: str) -> Trainer:
    """A trainer of one rank before its first step."""
    config = load_config([*jobs.small_settings(data, runs), *options], "test", "")
    train_set = open_manifest(data, "train")
    val_set = open_manifest(data, "val", classes=train_set.classes)
    decode = choose_decoding(config.data, torch.device("cpu"), Share(cores=1, gpu=0))
    return Trainer(config, World(), decode, train_set, val_set, StopSignal())


def test_without_it_there_is_no_network_and_no_part_of_the_checkpoint(small_data, tmp_path):
    trainer = made_trainer(small_data, tmp_path)
    assert trainer.state.ema is None
    assert "ema" not in trainer.content()
    with_it = made_trainer(small_data, tmp_path, *EMA)
    assert with_it.state.size_bytes(1) > 1.3 * trainer.state.size_bytes(1)


def test_the_initial_average_is_the_initial_weights(small_data, tmp_path):
    trainer = made_trainer(small_data, tmp_path, *EMA)
    content = trainer.content()
    assert differences(content["ema"]["model"], content["model"]) == []


@pytest.mark.parametrize(("sums", "own"), [("fast", True), ("fixed", False)])
def test_only_fast_sums_go_on_with_each_ranks_own_statistics(small_data, tmp_path, sums, own):
    content = made_trainer(small_data, tmp_path, *EMA, "--run.sums=fast").content()
    content["step"] = 2  # an update has been
    row = content["ema"]["rank_statistics"]
    content["ema"]["rank_statistics"] = torch.full_like(row, 7.0)
    trainer = made_trainer(small_data, tmp_path, *EMA, f"--run.sums={sums}")
    trainer.state.restore(content, World())
    found = trainer.content()["ema"]["rank_statistics"]
    assert torch.equal(found, torch.full_like(row, 7.0) if own else row)


def test_the_digest_over_ranks_has_it(small_data, tmp_path):
    trainer = made_trainer(small_data, tmp_path, *EMA)
    before = trainer.state.digest()
    content = trainer.content()
    content["step"], content["ema"]["model"]["fc.bias"][3] = 2, 0.5
    other = made_trainer(small_data, tmp_path, *EMA)
    other.state.restore(content, World())
    content["ema"]["model"]["fc.bias"][3] = 0.25
    trainer.state.restore(content, World())
    assert len({before, trainer.state.digest(), other.state.digest()}) == 3


def test_an_average_that_would_never_be_updated_is_refused(small_data, tmp_path):
    wrong = (
        r"^optim.ema_every_steps=14 is more than the 13 steps of the run, so that its EMA would "
        "never be updated; set it to 13 or less, or optim.ema_decay=null$"
    )
    with pytest.raises(ValueError, match=wrong):
        made_trainer(small_data, tmp_path, *EMA, "--optim.ema_every_steps=14")
    made_trainer(small_data, tmp_path, "--optim.ema_every_steps=14")  # without effect


# The choice of the best.


def of(top1: int, ema: int | None = None) -> Validation:
    return Validation(10, top1, 9, 1.0, ema=None if ema is None else Validation(10, ema, 9, 1.0))


@pytest.mark.parametrize(
    ("history", "best"),
    [
        ([of(5), of(6)], True),
        ([of(5), of(4)], False),
        ([of(5), of(5)], True),
        ([of(5, ema=3), of(4, ema=4)], True),
        ([of(4, ema=4), of(5, ema=3)], False),
    ],
)
def test_the_best_is_chosen_by_the_average_where_there_is_one(history, best):
    assert is_best(history) is best


def test_a_history_comes_back_from_a_checkpoint_of_this_version_and_of_earlier_ones():
    result = dataclasses.replace(of(5, ema=3), balanced_top1=0.25)
    assert Validation.from_state(dataclasses.asdict(result)) == result
    before = {"images": 10, "top1_correct": 5, "top5_correct": 9, "loss": 1.0, "epoch": 0,
              "step": 7, "position": 70}  # fmt: skip
    assert Validation.from_state(before).accuracies == {"top1": 0.5, "top5": 0.9}


# A run.


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    """A run of one rank that accumulates, which nothing interrupted."""
    runs = tmp_path_factory.mktemp("ema")
    yield train_here(small_data, runs, *jobs.RESUMABLE, "--data.local_batch_size=4", *EMA)
    shutil.rmtree(runs)


def test_two_ranks_killed_and_finished_by_one_have_the_bits_of_one_that_never_stopped(
    small_data, tmp_path, whole
):
    command = [str(SABOTEUR), "kill-step:9:all", *resumable(small_data, tmp_path), *EMA]
    assert jobs.run(command, ranks=2).codes == [-9, -9]
    run = train_here(small_data, tmp_path, *jobs.RESUMABLE, "--data.local_batch_size=4", *EMA)
    assert "resuming from" in (run / "log.txt").read_text()
    found, wanted = newest_checkpoint(run), newest_checkpoint(whole)
    assert found["step"] == wanted["step"] == 19
    assert differences(found["ema"], wanted["ema"]) == []
    assert state_differences(run, whole) == []
    assert [line for line in metrics(run) if line["event"] == "val"] == [
        line for line in metrics(whole) if line["event"] == "val"
    ]
    assert differences(wanted["ema"]["model"], wanted["model"]) != []  # else this shows nothing


def test_a_training_moves_it_by_the_weights_after_its_steps(small_data, tmp_path):
    every_step = ("--run.checkpoint_every_steps=1", "--run.keep_checkpoints=9")
    run = train_here(small_data, tmp_path, *every_step, "--optim.ema_warmup=true", *EMA)
    after = [read_verified(path)["model"] for path in sorted(run.glob("checkpoints/step-*.pt"))]
    assert len(after) == 7
    wanted = after[1]  # of the first update, which follows the second step
    for weights, decay in ((after[3], DECAYS_OF_TIMM[1]), (after[5], DECAYS_OF_TIMM[2])):
        wanted = {
            name: torch.lerp(average, weights[name], 1.0 - decay)
            for name, average in wanted.items()
            if average.is_floating_point()
        }
    found = newest_checkpoint(run)["ema"]["model"]
    for name, average in wanted.items():
        torch.testing.assert_close(found[name], average, rtol=1e-6, atol=1e-8)
    assert found["bn1.num_batches_tracked"] == after[6]["bn1.num_batches_tracked"]


def last_val(run: Path, step: int | None = None) -> dict[str, Any]:
    lines = [line for line in metrics(run) if line["event"] == "val"]
    return next(line for line in reversed(lines) if step in (None, line["step"]))


def test_each_validation_has_both_and_the_run_says_so(whole):
    lines = [line for line in metrics(whole) if line["event"] in ("val", "done")]
    assert len(lines) == 4
    for line in lines:
        assert 0 <= line["ema_top1"] <= line["ema_top5"] <= 1
        assert line["best_ema_top1"] >= line["ema_top1"]
        assert line["best_top1"] >= line["top1"]
    assert all(line["ema_loss"] != line["loss"] for line in lines[:3])
    last, log = lines[2], (whole / "log.txt").read_text()
    said = "EMA top1 {ema_top1:.2%} top5 {ema_top5:.2%} loss {ema_loss:.4f} ({images} images)"
    assert said.format(**last) in log
    assert log.count("norm layers: ") == 1  # of two networks
    assert f", EMA top-1 {last['ema_top1']:.2%}, top-5 " in log.partition("finished: ")[2]
    shown = curves(whole)
    for tag in ("ema_top1", "ema_top5", "ema_loss", "ema_error_percent", "best_ema_top1"):
        assert [step for step, _ in shown[f"val/{tag}"]] == [56, 104, 152]
    state = list_runs(whole.parent).runs[0]
    assert state.best_ema_top1 == lines[-1]["best_ema_top1"]
    assert f" {state.best_ema_top1:.2%} EMA " in describe(list_runs(whole.parent), whole.parent)
    assert as_json(list_runs(whole.parent))["runs"][0]["best_ema_top1"] == state.best_ema_top1


def test_what_is_said_of_a_network_is_said_once(whole):
    assert (whole / "log.txt").read_text().count("norm layers: ") == 1


def test_best_is_the_checkpoint_of_its_best_top1(whole):
    lines = [line for line in metrics(whole) if line["event"] == "val"]
    best = max(lines, key=lambda line: (line["ema_top1"], line["step"]))
    assert read_verified(whole / "checkpoints" / "best.pt")["step"] == best["step"]


def test_evaluate_takes_the_average_and_raw_weights_if_asked(whole, tmp_path, capsys):
    checkpoint, results = whole / "checkpoints" / "best.pt", {}
    validation = last_val(whole, read_verified(checkpoint)["step"])
    for options, prefix, said in (
        ([], "ema_", " (EMA of the weights) at step "),
        (["--weights=raw"], "", " (raw weights) at step "),
        (["--weights=ema"], "ema_", " (EMA of the weights) at step "),
    ):
        out = tmp_path / "out.json"
        evaluate_here("--checkpoint", str(checkpoint), f"--json={out}", *options)
        assert f"{checkpoint}{said}" in capsys.readouterr().out
        result = json.loads(out.read_text())
        results[prefix] = result
        for name in ("top1", "top5"):
            assert result[name] == validation[f"{prefix}{name}"]
        assert result["loss"] == pytest.approx(validation[f"{prefix}loss"], rel=1e-12)
    assert results[""]["balanced_top1"] == validation["balanced_top1"]
    assert (results[""]["weights_kind"], results["ema_"]["weights_kind"]) == (["raw"], ["ema"])
    assert results[""]["weights"] != results["ema_"]["weights"]
    names = {path.name for path in whole.glob("evaluate-*.json")}
    assert names == {"evaluate-1-crop.json", "evaluate-1-crop-raw.json"}
    run = read_run(whole)
    told = [Result(run, one).origin for one in run.evaluations]
    assert sum("EMA of the weights" in origin for origin in told) >= 1
    assert sum("raw weights, not their EMA" in origin for origin in told) >= 1


def test_an_average_that_is_not_there_is_refused_by_the_name_of_the_file(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "a.pt")
    wrong = (
        f"checkpoint {checkpoint} has no EMA of the weights, as it was trained with "
        "optim.ema_decay=null; give --weights raw, or leave it out"
    )
    with pytest.raises(Reported) as error:
        evaluate_here("--checkpoint", str(checkpoint), "--weights=ema")
    assert error.value.message == wrong
    assert read(checkpoint).kind is read(checkpoint, "raw").kind is None


def test_another_decay_is_another_run(small_data, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "test")
    options = (*jobs.RESUMABLE, "--data.local_batch_size=4", *EMA)
    with pytest.raises(Reported, match=r"optim.ema_decay: 0.9 in the checkpoint, 0.99 now"):
        train_here(small_data, tmp_path, *options, "--optim.ema_decay=0.99")
    with pytest.raises(Reported, match=r"optim.ema_decay: 0.9 in the checkpoint, (null|\(not)"):
        train_here(small_data, tmp_path, *options, "--optim.ema_decay=null")


@pytest.mark.parametrize(("raw", "ema", "best"), [(0, 30, True), (30, 0, False)])
def test_a_start_gives_best_its_name_where_a_kill_prevented_it(
    small_data, whole, tmp_path, raw, ema, best
):
    shutil.copytree(whole, tmp_path / "test")
    folder = CheckpointFolder(tmp_path / "test" / "checkpoints", keep=1)
    folder.best.unlink()
    content = newest_checkpoint(tmp_path / "test")
    content["history"][-1]["top1_correct"] = raw
    content["history"][-1]["ema"]["top1_correct"] = ema
    content["history"][0]["ema"]["top1_correct"] = 15
    write_atomically(folder.path(19), content)
    train_here(small_data, tmp_path, *jobs.RESUMABLE, "--data.local_batch_size=4", *EMA)
    assert folder.best.exists() is best


def test_settings_lie_in_their_limits(small_data, tmp_path):
    for option, rule in (
        ("--optim.ema_decay=1", r"optim.ema_decay=1.0 must lie in \[0, 1\), or null"),
        ("--optim.ema_every_steps=0", "optim.ema_every_steps=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=rule):
            config_of(small_data, tmp_path, option)
