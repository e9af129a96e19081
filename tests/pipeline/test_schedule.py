"""The learning rate on both sides of every boundary, and drops from error curves."""

import pytest

from pipeline.schedule import PlateauSchedule, StepSchedule, plateau_drops, scaled_lr

STEPS = StepSchedule(
    peak_lr=0.4, warmup_images=1000, warmup_start_factor=0.25, drop_positions=(3000, 6000, 8000)
)
PLATEAU = PlateauSchedule(
    peak_lr=0.4, warmup_images=1000, warmup_start_factor=0.25, patience=2, min_improvement=0.01
)

# Drawn by hand in the shape such runs have: falls, a plateau, falls after the drop, and so on.
CURVE = [0.80, 0.60, 0.50, 0.505, 0.495, 0.30, 0.28, 0.281, 0.279, 0.25, 0.249, 0.251, 0.25, 0.25]


def test_lr_is_linear_in_the_global_batch() -> None:
    assert scaled_lr(0.1, 256) == 0.1
    assert scaled_lr(0.1, 8192) == pytest.approx(3.2)
    assert scaled_lr(0.1, 64) == pytest.approx(0.025)


@pytest.mark.parametrize("schedule", [STEPS, PLATEAU])
def test_warm_up_rises_linearly_and_ends_exactly_at_the_peak(
    schedule: StepSchedule | PlateauSchedule,
) -> None:
    assert schedule.lr(0, []) == 0.1
    assert schedule.lr(500, []) == pytest.approx(0.25)
    assert schedule.lr(999, []) == pytest.approx(0.4 - 0.3 / 1000)
    assert schedule.lr(999, []) < 0.4
    assert schedule.lr(1000, []) == 0.4
    assert schedule.lr(1001, []) == 0.4


def test_without_warm_up_the_peak_holds_from_the_first_step() -> None:
    assert StepSchedule(0.4, 0, 0.1, (10,)).lr(0, []) == 0.4
    assert PlateauSchedule(0.4, 0, 0.1, 2, 0.01).lr(0, []) == 0.4


@pytest.mark.parametrize(("drop", "before"), [(3000, 0.4), (6000, 0.04), (8000, 0.004)])
def test_lr_falls_at_the_drop_and_not_a_position_earlier(drop: int, before: float) -> None:
    assert STEPS.lr(drop - 1, []) == pytest.approx(before)
    assert STEPS.lr(drop, []) == pytest.approx(before / 10)
    assert STEPS.lr(drop + 1, []) == STEPS.lr(drop, [])


def test_steps_do_not_look_at_the_history() -> None:
    assert STEPS.lr(5000, [0.5] * 50) == STEPS.lr(5000, [])


def test_drop_within_the_warm_up_multiplies_it() -> None:
    assert StepSchedule(0.4, 1000, 0.25, (500,)).lr(500, []) == pytest.approx(0.025)


def test_plateau_drops_on_a_whole_curve() -> None:
    # 0.50 is followed by 0.505 and 0.495 (0.005 better: too little); 0.28 by 0.281 and 0.279, and
    # 0.25 by 0.249, 0.251.
    assert plateau_drops(CURVE, patience=2, min_improvement=0.01, max_drops=3) == [4, 8, 11]


def test_plateau_is_the_same_whether_seen_at_once_or_as_it_grows() -> None:
    grown = [len(plateau_drops(CURVE[:n], 2, 0.01, 3)) for n in range(len(CURVE) + 1)]
    assert grown == [0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_lr_falls_from_the_validation_on() -> None:
    assert PLATEAU.lr(7000, CURVE[:4]) == 0.4
    assert PLATEAU.lr(7000, CURVE[:5]) == pytest.approx(0.04)
    assert PLATEAU.lr(7000, CURVE[:8]) == pytest.approx(0.04)
    assert PLATEAU.lr(7000, CURVE[:9]) == pytest.approx(0.004)
    assert PLATEAU.lr(7000, CURVE) == pytest.approx(0.0004)


def test_no_drop_while_the_error_falls() -> None:
    falling = [0.9 - 0.02 * n for n in range(40)]
    assert plateau_drops(falling, patience=1, min_improvement=0.01, max_drops=3) == []


def test_exactly_the_least_improvement_counts() -> None:
    # Binary fractions, so that the differences are exact.
    assert plateau_drops([0.5, 0.375], patience=1, min_improvement=0.125, max_drops=3) == []
    assert plateau_drops([0.5, 0.376], patience=1, min_improvement=0.125, max_drops=3) == [1]


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
    flat = [0.5] * 100
    assert plateau_drops(flat, patience=2, min_improvement=0.01, max_drops=3) == [2, 4, 6]
    assert plateau_drops(flat, patience=2, min_improvement=0.01, max_drops=0) == []
    assert PLATEAU.lr(9000, flat) == pytest.approx(0.0004)


def test_nan_error_is_no_improvement() -> None:
    nan = float("nan")
    assert plateau_drops([0.5, nan, nan, 0.3], 2, min_improvement=0.01, max_drops=3) == [2]


def test_description_names_peak_warm_up_and_drops() -> None:
    assert STEPS.describe() == (
        "lr 0.4, warm-up from 0.1 over 1,000 images, times 0.1 at 3,000; 6,000; 8,000 images"
    )
    assert StepSchedule(0.4, 0, 0.25, ()).describe() == "lr 0.4, no warm-up, no drops"
    assert PLATEAU.describe() == (
        "lr 0.4, warm-up from 0.1 over 1,000 images, times 0.1 after 2 validations without an "
        "error lower by 0.01, at most 3 times"
    )
