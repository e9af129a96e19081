"""The learning rate on both sides of every boundary, and drops from error curves."""

import pytest

from pipeline.config import Config, ConfigError, ScheduleConfig
from pipeline.config.reading import load_config
from pipeline.train.schedule import (
    ErrorWarmup,
    History,
    LinearWarmup,
    PlateauDrops,
    Schedule,
    StepDrops,
    make_schedule,
    run_length,
    scaled_lr,
)

LINEAR = LinearWarmup(images=1000, start_factor=0.25)
NONE = LinearWarmup(images=0, start_factor=0.25)
UNTIL_ERROR = ErrorWarmup(factor=0.1, until_error=0.8)
STEPS = Schedule(0.4, LINEAR, StepDrops((3000, 6000, 8000)))
PLATEAU = Schedule(0.4, LINEAR, PlateauDrops(patience=2, min_improvement=0.01))

# Drawn by hand in the shape such runs have: falls, a plateau, falls after the drop, and so on.
CURVE = (0.80, 0.60, 0.50, 0.505, 0.495, 0.30, 0.28, 0.281, 0.279, 0.25, 0.249, 0.251, 0.25, 0.25)
NAN = float("nan")


def test_lr_is_linear_in_the_global_batch():
    assert [scaled_lr(0.1, batch) for batch in (256, 8192, 64)] == pytest.approx([0.1, 3.2, 0.025])


@pytest.mark.parametrize("drops", [StepDrops((3000,)), PLATEAU.fall])
def test_a_linear_warm_up_rises_and_ends_exactly_at_the_peak(drops):
    schedule = Schedule(0.4, LINEAR, drops)
    assert schedule.lr(0) == 0.1
    assert schedule.lr(500) == pytest.approx(0.25)
    assert schedule.lr(999) == pytest.approx(0.4 - 0.3 / 1000) != 0.4
    assert schedule.lr(1000) == schedule.lr(1001) == 0.4
    assert Schedule(0.4, NONE, drops).lr(0) == 0.4


@pytest.mark.parametrize("drops", [StepDrops((9000,)), PLATEAU.fall])
def test_a_warm_up_until_an_error_is_constant_until_it_has_ended(drops):
    schedule, going, over = Schedule(0.4, UNTIL_ERROR, drops), History(), History(warmup_end=2000)
    assert [schedule.lr(p, going) for p in (0, 1999, 2000, 8999)] == pytest.approx([0.04] * 4)
    assert schedule.lr(1999, over) == pytest.approx(0.04)
    assert [schedule.lr(position, over) for position in (2000, 2001, 8999)] == [0.4] * 3


@pytest.mark.parametrize("end", [None, 2000, 4000])
def test_drops_count_from_position_0_whenever_the_warm_up_ends(end):
    schedule, history = Schedule(0.4, UNTIL_ERROR, StepDrops((3000,))), History(warmup_end=end)
    for position, factor in ((2999, 1.0), (3000, 0.1)):
        share = 1.0 if end is not None and position >= end else 0.1
        assert schedule.lr(position, history) == pytest.approx(0.4 * share * factor)


@pytest.mark.parametrize(("hits", "ends"), [(2560, False), (2561, True), (0, False)])
def test_a_warm_up_ends_below_its_error_and_not_at_it(hits, ends):
    # 12,800 images with an error of exactly 0.8 have 2,560 right answers.
    assert UNTIL_ERROR.ends(hits, images=12_800) == ends


def test_lr_falls_at_each_drop_and_not_a_position_earlier_whatever_validations_say():
    at = [STEPS.lr(p) for p in (2999, 3000, 3001, 5999, 6000, 7999, 8000)]
    assert at == pytest.approx([0.4, 0.04, 0.04, 0.04, 0.004, 0.004, 0.0004])
    assert STEPS.lr(5000, History((0.5,) * 50)) == STEPS.lr(5000)
    assert Schedule(0.4, LINEAR, StepDrops((500,))).lr(500) == pytest.approx(0.025)


def test_lr_falls_from_the_validation_on():
    at = [PLATEAU.lr(7000, History(CURVE[:n])) for n in (4, 5, 8, 9, len(CURVE))]
    assert at == pytest.approx([0.4, 0.04, 0.04, 0.004, 0.0004])


def test_plateau_drops_are_the_same_whether_seen_at_once_or_as_the_curve_grows():
    # 0.50 is followed by 0.505 and 0.495 (0.005 better: too little); 0.28 by 0.281 and 0.279, and
    # 0.25 by 0.249, 0.251.
    assert PLATEAU.fall.after(CURVE) == [4, 8, 11]
    grown = [len(PLATEAU.fall.after(CURVE[:n])) for n in range(len(CURVE) + 1)]
    assert grown == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("errors", "patience", "least", "drops"),
    [
        ([0.9 - 0.02 * n for n in range(40)], 1, 0.01, []),
        # Exactly the least improvement counts; binary fractions, so that differences are exact.
        ([0.5, 0.375], 1, 0.125, []),
        ([0.5, 0.376], 1, 0.125, [1]),
        # An equal error is none, even when none is asked for.
        ([0.5, 0.5], 1, 0.0, [1]),
        ([0.5, 0.499], 1, 0.0, []),
        # Small steps down add up to an improvement.
        ([0.5 - 0.0625 * n for n in range(8)], 2, 0.125, []),
        ([0.5 - 0.0625 * n for n in range(8)], 1, 0.125, [1, 3, 5]),
        # Patience starts over after a drop, and the best before it stays.
        ([0.2, 0.6, 0.5, 0.4, 0.3], 2, 0.01, [2, 4]),
        ([0.2] * 100, 3, 0.01, [3, 6, 9]),  # never more than the most
        ([0.5, NAN, NAN, 0.3], 2, 0.01, [2]),
    ],
)
def test_drops_come_after_validations_without_improvement(errors, patience, least, drops):
    assert PlateauDrops(patience, least).after(errors) == drops
    assert PlateauDrops(patience, least, most=0).after(errors) == []


def test_exactly_the_least_improvement_counts_whatever_the_rounding():
    rule = PlateauDrops(patience=1, min_improvement=0.001)
    images, least = 50_000, 50  # 0.1 points; as floats, about 9% of these differences are below it
    for wrong in range(5_000, 40_000, 7):
        errors = [1.0 - (images - wrong) / images, 1.0 - (images - wrong + least) / images]
        assert rule.after(errors) == []
        errors[1] = 1.0 - (images - wrong + least - 1) / images
        assert rule.after(errors) == [1]


@pytest.mark.parametrize(
    ("warmup", "drops", "global_batch_size", "text"),
    [
        (
            LINEAR, STEPS.fall, 100,
            "lr 0.4, warm-up from 0.1 over 10 steps (1,000 images), times 0.1 from steps 30; 60; "
            "80 on (3,000; 6,000; 8,000 images)",
        ),
        (NONE, StepDrops(()), 64, "lr 0.4, no warm-up, no drops"),
        (NONE, StepDrops((64,)), 64, "lr 0.4, no warm-up, times 0.1 from step 1 on (64 images)"),
        (
            UNTIL_ERROR, StepDrops(()), 64,
            "lr 0.4, warm-up at 0.04 until the training error of 100 steps is below 0.8, no drops",
        ),
        (
            LINEAR, PLATEAU.fall, 1000,
            "lr 0.4, warm-up from 0.1 over 1 step (1,000 images), times 0.1 after 2 validations "
            "without an error lower by 0.01, at most 3 times",
        ),
    ],
)  # fmt: skip
def test_description_names_peak_warm_up_and_drops(warmup, drops, global_batch_size, text):
    assert Schedule(0.4, warmup, drops).describe(global_batch_size, 100) == text


def test_the_steps_of_a_description_are_those_whose_lr_is_lower():
    schedule = Schedule(0.4, NONE, StepDrops((3000, 6001)))
    assert schedule.describe(64, 95).endswith("from steps 47; 94 on (3,000; 6,001 images)")
    only = "from step 47 on (3,000 images), and 1 drop behind its end"
    assert schedule.describe(64, 94).endswith(only)
    assert schedule.describe(64, 47).endswith("no drops in this run (2 drops behind its end)")
    lrs = [schedule.lr(step * 64) for step in (46, 47, 93, 94)]
    assert lrs == pytest.approx([0.4, 0.04, 0.04, 0.004])


# From a configuration, in epochs or in steps.

IN_STEPS = ("--schedule.epochs=null", "--schedule.steps=70", "--schedule.warmup_epochs=0")


def configured(*options: str) -> Config:
    return load_config(["--config=configs/demo.yaml", *options], "prog", "")


def test_a_length_in_steps_is_that_many_steps_of_any_data():
    schedule = configured(*IN_STEPS).schedule
    assert [run_length(schedule, images, 64) for images in (1, 50, 3000)] == [70] * 3
    assert run_length(configured("--schedule.epochs=1.5").schedule, 3000, 64) == 71  # 70.3


def test_drops_hold_from_the_first_image_of_their_step_or_epoch():
    in_steps = configured(*IN_STEPS, "--schedule.drop_epochs=null", "--schedule.drop_steps=[20,40]")
    assert make_schedule(in_steps, 50).fall == StepDrops((20 * 64, 40 * 64))
    assert make_schedule(in_steps, 50).peak_lr == pytest.approx(0.4 * 64 / 256)
    in_epochs = configured("--schedule.drop_epochs=[2.5]")
    assert make_schedule(in_epochs, 101).fall == StepDrops((253,))  # 252.5


def test_a_warm_up_as_long_as_a_run_in_steps_is_refused():
    # 70 steps of 64 images are 4,480 images: 4.48 epochs of 1,000.
    def make(epochs: float) -> Schedule:
        return make_schedule(configured(*IN_STEPS, f"--schedule.warmup_epochs={epochs}"), 1000)

    assert make(4.47).warmup == LinearWarmup(4470, 0.1)
    message = r"schedule\.warmup_epochs=4\.48 is 4,480 images .* schedule\.steps=70; shorten"
    with pytest.raises(ConfigError, match=message):
        make(4.48)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 9}, "either schedule.epochs=90.0 or schedule.steps=9; set one"),
        ({"epochs": None}, "either schedule.epochs=null or schedule.steps=null; set one"),
        ({"epochs": None, "steps": 0}, "schedule.steps=0 must"),
        (
            {"drop_steps": (5,)},
            "either in schedule.drop_epochs=[30.0,60.0,80.0] or in schedule.drop_steps=[5]; set",
        ),
        ({"drop_epochs": None}, "or in schedule.drop_steps=null; set one of them ([] for no drops"),
        ({"drop_epochs": None, "drop_steps": (5, 5)}, "schedule.drop_steps=[5,5] must"),
        ({"drop_epochs": None, "drop_steps": (0, 5)}, "schedule.drop_steps=[0,5] must"),
        (
            {"drop_epochs": None, "drop_steps": (5,), "rule": "plateau"},
            "schedule.drop_steps=[5] has no effect with schedule.rule=plateau",
        ),
        ({"epochs": None, "steps": 9, "warmup_epochs": -1.0}, "schedule.warmup_epochs=-1.0 must"),
        ({"warmup_until_error": 0.8}, "warmup_until_error=0.8 and schedule.warmup_epochs=5.0 are"),
        (
            {"warmup_until_error": 80.0, "warmup_epochs": 0},
            "schedule.warmup_until_error=80.0 must lie in (0, 1)",
        ),
        (
            {"warmup_until_error": 0.8, "warmup_epochs": 0, "warmup_start_factor": 1.0},
            "warmup_until_error=0.8 has no effect at schedule.warmup_start_factor=1.0",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError) as error:
        ScheduleConfig(**settings)
    assert message in str(error.value)
