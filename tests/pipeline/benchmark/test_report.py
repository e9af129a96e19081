"""Medians, quartiles and the order of rounds, on numbers whose results are known."""

import json

import pytest

from pipeline.benchmark.result import Result, Spread, interleave, ratio, write_json


def test_median_and_quartiles_of_nine_rounds():
    spread = Spread((9.0, 1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0))
    assert spread.quartiles == (3.0, 5.0, 7.0)
    assert spread.median == 5.0


def test_of_an_even_number_of_rounds_the_median_is_the_mean_of_the_middle_two():
    assert Spread((4.0, 1.0, 3.0, 2.0)).median == 2.5


def test_one_round_is_its_own_median_and_quartiles():
    assert Spread((3.0,)).quartiles == (3.0, 3.0, 3.0)


def test_a_ratio_compares_neighbours_in_time_not_medians():
    # The machine halves its speed after the first round; the sides stay 2 to 1.
    ours, other = Spread((8.0, 4.0, 4.0)), Spread((4.0, 2.0, 2.0))
    assert ratio(ours, other).rounds == (2.0, 2.0, 2.0)
    assert ratio(Spread((1.0, 9.0, 4.0)), Spread((1.0, 3.0, 2.0))).median == 2.0


def test_rounds_of_the_sides_alternate():
    calls: list[str] = []

    def side(name: str):
        def measure() -> float:
            calls.append(name)
            return float(len(calls))

        return measure

    spreads = interleave(3, {"a": side("a"), "b": side("b")})
    assert calls == ["a", "b"] * 3
    assert spreads["a"].rounds == (1.0, 3.0, 5.0)
    assert spreads["b"].rounds == (2.0, 4.0, 6.0)


def test_the_json_holds_ratios_as_numbers_and_their_rounds_beside(tmp_path):
    result = Result(
        "made",
        {"rounds": 3},
        {"a_vs_b": Spread((1.0, 3.0, 2.0)), "plain": 0.5},
        {"a_sec": Spread((1.0, 2.0, 3.0))},
        {"files": 7},
    )
    write_json(tmp_path / "made.json", result.to_json({"torch": "0"}))
    found = json.loads((tmp_path / "made.json").read_text())
    assert found["ratios"] == {"a_vs_b": 2.0, "plain": 0.5}
    assert found["ratio_rounds"] == {
        "a_vs_b": {"median": 2.0, "quartiles": [1.5, 2.5], "rounds": [1.0, 3.0, 2.0]}
    }
    assert found["raw"]["a_sec"]["rounds"] == [1.0, 2.0, 3.0]
    assert found["raw"]["files"] == 7
    assert found["settings"] == {"rounds": 3} and found["versions"] == {"torch": "0"}
    assert found["machine"]["cpu"] and found["machine"]["cores"] >= 1
    assert found["date"].startswith("20")


def test_the_text_has_a_line_for_each_ratio():
    result = Result("made", {}, {"a_vs_b": Spread((1.0, 3.0, 2.0)), "plain": 0.5})
    assert result.text().splitlines() == [
        "a_vs_b = 2.000 (quartiles 1.500 .. 2.500, 3 rounds)",
        "plain = 0.500",
    ]


def test_a_table_of_its_own_takes_the_place_of_the_spreads():
    result = Result(
        "made",
        {},
        {"a_vs_b": 0.5},
        {"a_sec": Spread((1.0,))},
        {"copies": 3, "not_run": {"apex": "not installed"}},
        [("side", "img/s", "share"), ("eager", "12", "50%")],
    )
    assert result.text().splitlines() == [
        "side   img/s  share",
        "eager     12    50%",
        "copies  3",
        "apex: not run: not installed",
        "a_vs_b = 0.500",
    ]


def test_what_json_cannot_say_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "made.json", {"ratios": {"a": float("nan")}})
