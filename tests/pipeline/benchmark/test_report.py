"""Medians, quartiles and the order of rounds, on numbers whose results are known."""

import json

import pytest

from pipeline.benchmark.result import (
    Result,
    Spread,
    interleave,
    number,
    of_this_machine,
    ratio,
    write_json,
)


@pytest.mark.parametrize(
    ("rounds", "quartiles"),
    [
        ((9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0), (3.0, 5.0, 7.0)),
        ((4.0, 1.0, 3.0, 2.0), (1.75, 2.5, 3.25)),
        ((3.0,), (3.0, 3.0, 3.0)),
    ],
)
def test_the_median_and_the_quartiles(rounds, quartiles):
    assert Spread(rounds).quartiles == quartiles
    assert Spread(rounds).median == quartiles[1]


def test_a_ratio_compares_neighbours_in_time_not_medians():
    # The machine halves its speed after the first round; the sides stay 2 to 1.
    ours, other = Spread((8.0, 4.0, 4.0)), Spread((4.0, 2.0, 2.0))
    assert ratio(ours, other).rounds == (2.0, 2.0, 2.0)
    assert ratio(Spread((1.0, 9.0, 4.0)), Spread((1.0, 3.0, 2.0))).median == 2.0


def test_rounds_of_the_sides_alternate_and_the_first_does_not_count():
    calls: list[str] = []

    def side(name: str):
        def measure() -> float:
            calls.append(name)
            return float(len(calls))

        return measure

    second = side("b")
    spreads = interleave(3, {"a": side("a"), "b": lambda: {"b_sec": second(), "half": 0.5}})
    assert calls == ["a", "b"] * 4
    assert {name: spread.rounds for name, spread in spreads.items()} == {
        "a": (3.0, 5.0, 7.0), "b_sec": (4.0, 6.0, 8.0), "half": (0.5, 0.5, 0.5),
    }  # fmt: skip


def test_the_json_holds_ratios_as_numbers_and_their_rounds(tmp_path):
    result = Result(
        "made",
        {"rounds": 3},
        {"a_vs_b": Spread((1.0, 3.0, 2.0)), "plain": 0.5},
        {"a_sec": Spread((1.0, 2.0, 3.0))},
        {"files": 7},
    )
    write_json(tmp_path / "made.json", of_this_machine(result.to_json()))
    found = json.loads((tmp_path / "made.json").read_text())
    assert found["ratios"] == {"a_vs_b": 2.0, "plain": 0.5}
    assert found["ratio_rounds"] == {
        "a_vs_b": {"median": 2.0, "quartiles": [1.5, 2.5], "rounds": [1.0, 3.0, 2.0]}
    }
    assert found["raw"]["a_sec"]["rounds"] == [1.0, 2.0, 3.0]
    assert found["raw"]["files"] == 7 and found["settings"] == {"rounds": 3}
    assert found["machine"]["cpu"] and found["machine"]["cores"] >= 1
    assert found["date"].startswith("20")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "made.json", {"ratios": {"a": float("nan")}})


def test_the_text_has_the_spreads_or_a_table_of_its_own_and_a_line_for_each_ratio():
    ratios = {"a_vs_b": Spread((1.0, 3.0, 2.0)), "plain": 0.5}
    figures = {"copies": 3, "not_run": {"apex": "not installed"}}
    result = Result("made", {}, ratios, {"a_sec": Spread((0.5,))}, figures)
    below = [
        "copies  3",
        "apex: not run: not installed",
        "a_vs_b = 2.000 (quartiles 1.500 .. 2.500, 3 rounds)",
        "plain = 0.500",
    ]
    spreads = ["       median   quartiles", "a_sec     0.5  0.5 .. 0.5"]
    assert result.text().splitlines() == spreads + below
    result.table = [("side", "img/s", "share"), ("eager", "12", "50%")]
    own = ["side   img/s  share", "eager     12    50%"]
    assert result.text().splitlines() == own + below
    assert [number(one) for one in (0.0123456, 1234.5, 65261.3, 4.3e12)] == [
        "0.01235", "1234", "65261", "4.3e+12",
    ]  # fmt: skip
