"""Learning rates that fall along a curve: the reference's values, both ends, the log's words, and a
run that cannot be prolonged."""

import json
import math
import shutil
from pathlib import Path

import jobs
import pytest
from jobs import SABOTEUR, small_settings
from one_process import train_here
from run_files import checkpoint_steps, differences, metrics, newest_checkpoint

from pipeline.config import Config, ConfigError, OptimConfig, ScheduleConfig
from pipeline.config.reading import load_config
from pipeline.system.failure import Reported
from pipeline.train.schedule import (
    CosineCurve,
    ErrorWarmup,
    History,
    LinearWarmup,
    PolynomialCurve,
    Schedule,
    make_schedule,
    run_length,
)

REFERENCES = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "references.json").read_text(encoding="utf-8")
)["schedules"]
IMAGES = 1000  # of an epoch
COSINE = ("--schedule.rule=cosine", "--schedule.drop_epochs=[30]")


def configured(*options: str) -> Config:
    return load_config(["--config=configs/demo.yaml", *options], "prog", "")


@pytest.mark.parametrize(
    ("name", "base_lr", "options"),
    [
        (
            "torchvision v2: SequentialLR(LinearLR(0.01, 5), CosineAnnealingLR(595)) base 0.5, by "
            "epoch",
            0.5, ("--schedule.epochs=600", "--schedule.warmup_start_factor=0.01"),
        ),
        (
            "timm CosineLRScheduler(t_initial=100, lr_min=1e-6, warmup_t=5, warmup_lr_init=1e-4, "
            "warmup_prefix=True) base 0.8, by epoch",
            0.8,
            ("--schedule.epochs=105", f"--schedule.warmup_start_factor={1e-4 / 0.8}",
             f"--schedule.end_factor={1e-6 / 0.8}"),
        ),
    ],
)  # fmt: skip
def test_a_cosine_has_the_rates_of_the_reference_at_whole_epochs(name, base_lr, options):
    config = configured(
        *COSINE, "--schedule.warmup_epochs=5", f"--optim.base_lr={base_lr}",
        "--data.global_batch_size=256", *options,
    )  # fmt: skip
    schedule = make_schedule(config, IMAGES)
    for epoch, wanted in REFERENCES[name].items():
        assert schedule.lr(int(epoch) * IMAGES) == pytest.approx(wanted, rel=1e-6), epoch


@pytest.mark.parametrize(
    ("options", "end"),
    [
        (("--schedule.epochs=2.5",), 2500),
        (("--schedule.epochs=null", "--schedule.steps=70"), 70 * 64),
    ],
)
@pytest.mark.parametrize(
    ("rule", "middle"),
    [("cosine", 0.5), ("polynomial", 0.25)],
)
def test_a_curve_begins_where_the_warm_up_ends_and_ends_with_the_run(options, end, rule, middle):
    config = configured(
        f"--schedule.rule={rule}", "--schedule.power=2", "--schedule.end_factor=0.2",
        "--schedule.warmup_epochs=0.5", "--optim.base_lr=4", *options,
    )  # fmt: skip
    schedule = make_schedule(config, IMAGES)
    assert schedule.lr(499) < schedule.lr(500) == 1.0 > schedule.lr(501)
    assert schedule.lr(500 + (end - 500) // 2) == pytest.approx(0.2 + 0.8 * middle)
    assert 0.2 < schedule.lr(end - 1) < 0.2 + 1e-3
    assert schedule.lr(end) == schedule.lr(end + 64) == 0.2
    last = run_length(config.schedule, IMAGES, 64) * 64
    assert last - 64 < end <= last
    rates = [schedule.lr(position) for position in range(500, end + 1, 10)]
    assert rates == sorted(rates, reverse=True) and len(set(rates)) == len(rates)


def test_after_a_warm_up_until_an_error_a_curve_begins_where_that_ended():
    schedule = Schedule(0.4, ErrorWarmup(0.1, 0.8), PolynomialCurve(3000, 0.0, 1.0))
    waiting, over = History((0.5,)), History((0.5,), warmup_end=1000)
    assert [schedule.lr(p, waiting) for p in (0, 1000, 2999)] == pytest.approx([0.04] * 3)
    at = [schedule.lr(p, over) for p in (0, 999, 1000, 2000, 2500)]
    assert at == pytest.approx([0.04, 0.04, 0.4, 0.2, 0.1])


def test_the_log_names_the_curve_its_floor_and_its_end():
    warmup = LinearWarmup(1000, 0.25)
    cosine = Schedule(0.4, warmup, CosineCurve(10_000, 0.0))
    assert cosine.describe(100, 100) == (
        "lr 0.4, warm-up from 0.1 over 10 steps (1,000 images), then a cosine down to 0 at step "
        "100 (10,000 images)"
    )
    power = Schedule(0.4, LinearWarmup(0, 0.1), PolynomialCurve(10_000, 0.01, 2.0))
    assert power.describe(100, 100) == (
        "lr 0.4, no warm-up, then a polynomial of power 2 down to 0.01 of that at step 100 (10,000 "
        "images)"
    )


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (ScheduleConfig, {"power": 0.0}, "schedule.power=0.0 must be greater than 0"),
        (ScheduleConfig, {"power": -1.0}, "schedule.power=-1.0 must be greater than 0"),
        (ScheduleConfig, {"end_factor": 1.0}, "schedule.end_factor=1.0 must lie in [0, 1)"),
        (
            ScheduleConfig, {"rule": "cosine", "epochs": 5.0},
            "schedule.warmup_epochs=5.0 must be less than schedule.epochs=5.0",
        ),
        (
            ScheduleConfig, {"rule": "cosine", "drop_epochs": None, "drop_steps": (5,)},
            "schedule.drop_steps=[5] has no effect with schedule.rule=cosine; set it to null",
        ),
        (OptimConfig, {"clip_norm": 0.0}, "optim.clip_norm=0.0 must be greater than 0, or null"),
        (OptimConfig, {"clip_norm": -1.0}, "optim.clip_norm=-1.0 must be greater than 0, or null"),
        (
            OptimConfig, {"nesterov": True, "momentum": 0.0},
            "optim.nesterov=true needs momentum and optim.momentum is 0.0; set",
        ),
        (
            OptimConfig, {"nesterov": True, "optimizer": "lamb"},
            "optim.nesterov=true is not for optim.optimizer=lamb; set it to false",
        ),
        (
            OptimConfig, {"trust_coefficient": 0.01},
            "optim.trust_coefficient=0.01 has an effect with optim.optimizer=lars alone and that "
            "is sgd; leave it at 0.001, or set optim.optimizer=lars",
        ),
        (
            OptimConfig, {"beta2": 0.99, "optimizer": "lars"},
            "optim.beta2=0.99 has an effect with optim.optimizer=lamb alone and that is lars; "
            "leave it at 0.999, or set optim.optimizer=lamb",
        ),
        (OptimConfig, {"beta2": 1.0, "optimizer": "lamb"}, "optim.beta2=1.0 must lie in (0, 1)"),
        (
            OptimConfig, {"optimizer": "lars", "weight_decay": 0.0},
            "optim.optimizer=lars scales the steps of weights that decay, and optim.weight_decay "
            "is 0.0; set it above 0, or optim.optimizer=sgd",
        ),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(part, settings, message):
    with pytest.raises(ConfigError) as error:
        part(**settings)
    assert message in str(error.value)


def test_a_warm_up_longer_than_a_cosine_in_steps_is_refused():
    config = configured(
        *COSINE, "--schedule.epochs=null", "--schedule.steps=70", "--schedule.warmup_epochs=5"
    )
    with pytest.raises(ConfigError, match=r"warmup_epochs=5\.0 is 5,000 images .*steps=70; short"):
        make_schedule(config, IMAGES)


def test_drops_of_a_plateau_to_nothing_are_refused_for_lars():
    plateau = ("--schedule.rule=plateau", "--optim.optimizer=lars", "--optim.weight_decay=1e-4")
    configured(*plateau, "--schedule.max_drops=30")
    with pytest.raises(ConfigError) as error:
        configured(*plateau, "--schedule.max_drops=40")
    assert (
        "schedule.max_drops=40 of schedule.rule=plateau lets the step of optim.optimizer=lars"
        in (str(error.value))
    )
    configured("--schedule.rule=plateau", "--schedule.max_drops=40")  # as it was
    configured(*plateau[1:], "--schedule.max_drops=40")


# In real runs.

LAMB = (
    *COSINE, "--optim.optimizer=lamb", "--optim.base_lr=0.3", "--optim.weight_decay=0.02",
    "--optim.clip_norm=0.5", "--schedule.end_factor=0.01", "--schedule.warmup_epochs=0.3",
    "--schedule.epochs=1.5", "--run.checkpoint_every_steps=2", "--data.local_batch_size=4",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    """The folder of a run of one rank, 10 steps, that nothing interrupted."""
    runs = tmp_path_factory.mktemp("whole")
    yield train_here(small_data, runs, *LAMB, "--run.log_every_steps=1")
    shutil.rmtree(runs)


def test_a_curves_run_cannot_be_prolonged_nor_continued_by_another_optimizer(small_data, whole):
    rates = [line["lr"] for line in metrics(whole) if line["event"] == "train"]
    assert len(rates) == 10 and rates[2:] == sorted(rates[2:], reverse=True)
    assert 0.01 < rates[-1] / (0.3 * 8 / 256) < 0.05
    told = "then a cosine down to 0.01 of that at step 10 (75 images)"
    assert told in (whole / "log.txt").read_text()
    with pytest.raises(Reported) as error:
        train_here(small_data, whole.parent, *LAMB, "--schedule.epochs=2")
    assert (
        "(schedule.epochs: 1.5 in the checkpoint, 2.0 now); set these back, or choose another "
        "run.name; with schedule.rule=cosine the rate of every step depends on the length, so that "
        "a run cannot be prolonged or shortened once it has begun"
    ) in str(error.value)
    with pytest.raises(
        Reported, match=r"\(optim\.optimizer: lamb in the checkpoint, lars now\); se"
    ):
        train_here(small_data, whole.parent, *LAMB, "--optim.optimizer=lars")


def test_stopped_at_2_ranks_and_finished_by_1_it_has_the_bits_of_a_run_of_1(
    small_data, whole, tmp_path
):
    settings = [*small_settings(small_data, tmp_path), *LAMB]
    two = jobs.run([str(SABOTEUR), "stop-step:3:1", *settings], ranks=2)
    assert two.codes == [75, 75], two.text
    assert checkpoint_steps(tmp_path / "test")[-1] == 4
    run = train_here(small_data, tmp_path, *LAMB)
    assert "steps 4 to 10" in (run / "log.txt").read_text()
    found, wanted = newest_checkpoint(run), newest_checkpoint(whole)
    assert wanted["lamb"]["updates"] == 10 and len(wanted["lamb"]["second_moment"]) == 23
    for part in ("step", "model", "momentum", "lamb", "history"):
        assert differences(found[part], wanted[part]) == []
    assert all(math.isfinite(line["loss"]) for line in metrics(run) if line["event"] == "train")
    shutil.rmtree(tmp_path)
