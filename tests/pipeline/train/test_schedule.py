"""The learning rate on both sides of every boundary, and drops from error curves."""

import pytest

from pipeline.config import Config, ConfigError, ScheduleConfig
from pipeline.config.reading import load_config
from pipeline.train.schedule import (
    ErrorWarmup,
    History,
    LinearWarmup,
    PlateauSchedule,
    Schedule,
    StepSchedule,
    make_schedule,
    plateau_drops,
    run_length,
    scaled_lr,
)

LINEAR = LinearWarmup(images=1000, start_factor=0.25)
NONE = LinearWarmup(images=0, start_factor=0.25)
UNTIL_ERROR = ErrorWarmup(factor=0.1, until_error=0.8)
STEPS = StepSchedule(0.4, LINEAR, drop_positions=(3000, 6000, 8000))
PLATEAU = PlateauSchedule(0.4, LINEAR, patience=2, min_improvement=0.01)

# Drawn by hand in the shape such runs have: falls, a plateau, falls after the drop, and so on.
CURVE = (0.80, 0.60, 0.50, 0.505, 0.495, 0.30, 0.28, 0.281, 0.279, 0.25, 0.249, 0.251, 0.25, 0.25)


def test_lr_is_linear_in_the_global_batch() -> None:
    assert scaled_lr(0.1, 256) == 0.1
    assert scaled_lr(0.1, 8192) == pytest.approx(3.2)
    assert scaled_lr(0.1, 64) == pytest.approx(0.025)


@pytest.mark.parametrize("schedule", [STEPS, PLATEAU])
def test_warm_up_rises_linearly_and_ends_exactly_at_the_peak(schedule: Schedule) -> None:
    assert schedule.lr(0) == 0.1
    assert schedule.lr(500) == pytest.approx(0.25)
    assert schedule.lr(999) == pytest.approx(0.4 - 0.3 / 1000)
    assert schedule.lr(999) < 0.4
    assert schedule.lr(1000) == 0.4
    assert schedule.lr(1001) == 0.4


def test_without_warm_up_the_peak_holds_from_the_first_step() -> None:
    assert StepSchedule(0.4, NONE, (10,)).lr(0) == 0.4
    assert PlateauSchedule(0.4, NONE, 2, 0.01).lr(0) == 0.4


@pytest.mark.parametrize(
    "schedule", [StepSchedule(0.4, UNTIL_ERROR, (9000,)), PlateauSchedule(0.4, UNTIL_ERROR, 2, 0.1)]
)
def test_a_warm_up_until_an_error_is_constant_until_it_has_ended(schedule: Schedule) -> None:
    going, over = History(), History(warmup_end=2000)
    assert [schedule.lr(p, going) for p in (0, 1999, 2000, 8999)] == pytest.approx([0.04] * 4)
    assert schedule.lr(1999, over) == pytest.approx(0.04)
    assert [schedule.lr(position, over) for position in (2000, 2001, 8999)] == [0.4] * 3


@pytest.mark.parametrize("end", [None, 2000, 4000])
def test_drops_count_from_position_0_whenever_the_warm_up_ends(end: int | None) -> None:
    schedule, history = StepSchedule(0.4, UNTIL_ERROR, (3000,)), History(warmup_end=end)
    for drop, factor in ((2999, 1.0), (3000, 0.1)):
        share = 1.0 if end is not None and drop >= end else 0.1
        assert schedule.lr(drop, history) == pytest.approx(0.4 * share * factor)


def test_a_warm_up_ends_below_its_error_and_not_at_it() -> None:
    # 12,800 images with an error of exactly 0.8 have 2,560 right answers.
    assert not UNTIL_ERROR.ends(hits=2560, images=12_800)
    assert UNTIL_ERROR.ends(hits=2561, images=12_800)
    assert not UNTIL_ERROR.ends(hits=0, images=12_800)


@pytest.mark.parametrize(("drop", "before"), [(3000, 0.4), (6000, 0.04), (8000, 0.004)])
def test_lr_falls_at_the_drop_and_not_a_position_earlier(drop: int, before: float) -> None:
    assert STEPS.lr(drop - 1) == pytest.approx(before)
    assert STEPS.lr(drop) == pytest.approx(before / 10)
    assert STEPS.lr(drop + 1) == STEPS.lr(drop)


def test_steps_do_not_look_at_the_validations() -> None:
    assert STEPS.lr(5000, History((0.5,) * 50)) == STEPS.lr(5000)


def test_drop_within_the_warm_up_multiplies_it() -> None:
    assert StepSchedule(0.4, LINEAR, (500,)).lr(500) == pytest.approx(0.025)


def test_plateau_drops_on_a_whole_curve() -> None:
    # 0.50 is followed by 0.505 and 0.495 (0.005 better: too little); 0.28 by 0.281 and 0.279, and
    # 0.25 by 0.249, 0.251.
    assert plateau_drops(CURVE, patience=2, min_improvement=0.01, max_drops=3) == [4, 8, 11]


def test_plateau_is_the_same_whether_seen_at_once_or_as_it_grows() -> None:
    grown = [len(plateau_drops(CURVE[:n], 2, 0.01, 3)) for n in range(len(CURVE) + 1)]
    assert grown == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_lr_falls_from_the_validation_on() -> None:
    assert PLATEAU.lr(7000, History(CURVE[:4])) == 0.4
    assert PLATEAU.lr(7000, History(CURVE[:5])) == pytest.approx(0.04)
    assert PLATEAU.lr(7000, History(CURVE[:8])) == pytest.approx(0.04)
    assert PLATEAU.lr(7000, History(CURVE[:9])) == pytest.approx(0.004)
    assert PLATEAU.lr(7000, History(CURVE)) == pytest.approx(0.0004)


def test_no_drop_while_the_error_falls() -> None:
    falling = [0.9 - 0.02 * n for n in range(40)]
    assert plateau_drops(falling, patience=1, min_improvement=0.01, max_drops=3) == []


def test_exactly_the_least_improvement_counts() -> None:
    # Binary fractions, so that the differences are exact.
    assert plateau_drops([0.5, 0.375], patience=1, min_improvement=0.125, max_drops=3) == []
    assert plateau_drops([0.5, 0.376], patience=1, min_improvement=0.125, max_drops=3) == [1]


def test_exactly_the_least_improvement_counts_whatever_the_rounding() -> None:
    images, least = 50_000, 50  # 0.1 points; as floats, about 9% of these differences are below it
    for wrong in range(5_000, 40_000, 7):
        errors = [1.0 - (images - wrong) / images, 1.0 - (images - wrong + least) / images]
        assert plateau_drops(errors, 1, 0.001, 3) == []
        errors[1] = 1.0 - (images - wrong + least - 1) / images
        assert plateau_drops(errors, 1, 0.001, 3) == [1]


def test_equal_error_is_no_improvement_even_when_none_is_asked() -> None:
    assert plateau_drops([0.5, 0.5], patience=1, min_improvement=0.0, max_drops=3) == [1]
    assert plateau_drops([0.5, 0.499], patience=1, min_improvement=0.0, max_drops=3) == []


def test_small_steps_down_add_up_to_an_improvement() -> None:
    slow = [0.5 - 0.0625 * n for n in range(8)]
    assert plateau_drops(slow, patience=2, min_improvement=0.125, max_drops=3) == []
    assert plateau_drops(slow, patience=1, min_improvement=0.125, max_drops=3) == [1, 3, 5]


def test_patience_starts_anew_after_a_drop_and_the_best_stays() -> None:
    # Worse errors after the drop improve on each other, but not on the best before it.
    errors = [0.2, 0.6, 0.5, 0.4, 0.3]
    assert plateau_drops(errors, patience=2, min_improvement=0.01, max_drops=3) == [2, 4]
    assert plateau_drops([0.2] * 10, patience=3, min_improvement=0.01, max_drops=9) == [3, 6, 9]


def test_never_more_than_the_most_drops() -> None:
    flat = (0.5,) * 100
    assert plateau_drops(flat, patience=2, min_improvement=0.01, max_drops=3) == [2, 4, 6]
    assert plateau_drops(flat, patience=2, min_improvement=0.01, max_drops=0) == []
    assert PLATEAU.lr(9000, History(flat)) == pytest.approx(0.0004)


def test_nan_error_is_no_improvement() -> None:
    nan = float("nan")
    assert plateau_drops([0.5, nan, nan, 0.3], 2, min_improvement=0.01, max_drops=3) == [2]


def test_description_names_peak_warm_up_and_drops() -> None:
    assert STEPS.describe(100) == (
        "lr 0.4, warm-up from 0.1 over 10 steps (1,000 images), times 0.1 from steps 30; 60; 80 on "
        "(3,000; 6,000; 8,000 images)"
    )
    assert StepSchedule(0.4, NONE, ()).describe(64) == "lr 0.4, no warm-up, no drops"
    assert StepSchedule(0.4, UNTIL_ERROR, ()).describe(64) == (
        "lr 0.4, warm-up at 0.04 until the training error of 100 steps is below 0.8, no drops"
    )
    assert PLATEAU.describe(1000) == (
        "lr 0.4, warm-up from 0.1 over 1 step (1,000 images), times 0.1 after 2 validations "
        "without an error lower by 0.01, at most 3 times"
    )


def test_the_steps_of_a_description_are_those_whose_lr_is_lower() -> None:
    text = StepSchedule(0.4, NONE, (3000, 6001)).describe(64)
    assert text.endswith("times 0.1 from steps 47; 94 on (3,000; 6,001 images)")
    one = StepSchedule(0.4, NONE, (64,)).describe(64)
    assert one.endswith("times 0.1 from step 1 on (64 images)")
    schedule = StepSchedule(0.4, NONE, (3000, 6001))
    lrs = [schedule.lr(step * 64) for step in (46, 47, 93, 94)]
    assert lrs == pytest.approx([0.4, 0.04, 0.04, 0.004])


# From a configuration, in epochs or in steps.

IN_STEPS = ("--schedule.epochs=null", "--schedule.steps=70", "--schedule.warmup_epochs=0")


def configured(*options: str) -> Config:
    return load_config(["--config=configs/demo.yaml", *options], "prog", "")


def test_a_length_in_steps_is_that_many_steps_of_any_data() -> None:
    schedule = configured(*IN_STEPS).schedule
    assert [run_length(schedule, images, 64) for images in (1, 50, 3000)] == [70] * 3
    assert run_length(configured("--schedule.epochs=1.5").schedule, 3000, 64) == 71  # 70.3


def test_drops_in_steps_hold_from_the_first_image_of_their_step() -> None:
    drops = ("--schedule.drop_epochs=null", "--schedule.drop_steps=[20,40]")
    schedule = make_schedule(configured(*IN_STEPS, *drops), train_images=50)
    peak = 0.4 * 64 / 256
    lrs = [schedule.lr(step * 64) for step in (19, 20, 39, 40, 69)]
    assert lrs == pytest.approx([peak, peak / 10, peak / 10, peak / 100, peak / 100])
    assert schedule.lr(20 * 64 - 1) == pytest.approx(peak)


def test_drops_in_epochs_hold_from_the_first_image_of_their_epoch() -> None:
    schedule = make_schedule(configured("--schedule.drop_epochs=[2.5]"), train_images=101)
    assert isinstance(schedule, StepSchedule)
    assert schedule.drop_positions == (253,)  # 252.5


def test_a_warm_up_as_long_as_a_run_in_steps_is_refused() -> None:
    # 70 steps of 64 images are 4,480 images: 4.48 epochs of 1,000.
    def make(epochs: float) -> Schedule:
        return make_schedule(configured(*IN_STEPS, f"--schedule.warmup_epochs={epochs}"), 1000)

    assert make(4.47).warmup == LinearWarmup(4470, 0.1)
    message = (
        r"schedule\.warmup_epochs=4\.48 is 4,480 images and the run has 4,480 in "
        r"schedule\.steps=70; shorten the warm-up or lengthen the run"
    )
    with pytest.raises(ConfigError, match=message):
        make(4.48)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 9}, "either schedule.epochs=90.0 or schedule.steps=9; set one of them and"),
        ({"epochs": None}, "either schedule.epochs=null or schedule.steps=null; set one of them"),
        ({"epochs": None, "steps": 0}, "schedule.steps=0 must be at least 1"),
        (
            {"drop_steps": (5,)},
            "either in schedule.drop_epochs=[30.0, 60.0, 80.0] or in schedule.drop_steps=[5]; set",
        ),
        ({"drop_epochs": None}, "or in schedule.drop_steps=null; set one of them ([] for no drops"),
        (
            {"drop_epochs": None, "drop_steps": (5, 5)},
            "schedule.drop_steps=[5, 5] must be positive and rising",
        ),
        (
            {"drop_epochs": None, "drop_steps": (0, 5)},
            "schedule.drop_steps=[0, 5] must be positive and rising",
        ),
        (
            {"drop_epochs": None, "drop_steps": (5,), "rule": "plateau"},
            "schedule.drop_steps=[5] has no effect with schedule.rule=plateau; set it to null",
        ),
        (
            {"epochs": None, "steps": 9, "warmup_epochs": -1.0},
            "schedule.warmup_epochs=-1.0 must be at least 0",
        ),
        (
            {"warmup_until_error": 0.8},
            "schedule.warmup_until_error=0.8 and schedule.warmup_epochs=5.0 are two warm-ups",
        ),
        (
            {"warmup_until_error": 80.0, "warmup_epochs": 0},
            "schedule.warmup_until_error=80.0 must lie in (0, 1), or be null for none",
        ),
        (
            {"warmup_until_error": 0.8, "warmup_epochs": 0, "warmup_start_factor": 1.0},
            "schedule.warmup_until_error=0.8 has no effect at schedule.warmup_start_factor=1.0",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message) -> None:
    with pytest.raises(ConfigError) as error:
        ScheduleConfig(**settings)
    assert message in str(error.value)
