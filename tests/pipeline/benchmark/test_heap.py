"""The benchmark of kept memory where there is nothing to compare."""

from pipeline.benchmark import heap
from pipeline.benchmark.options import StepOptions
from pipeline.benchmark.result import Result
from pipeline.system.memory import give_back_freed_memory


def test_with_settings_of_the_user_it_is_not_run_and_says_why(monkeypatch):
    give_back_freed_memory()  # another test of this process may have kept it
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    result = Result("step", {}, figures={"not_run": {}})
    heap.measure_heap(StepOptions(images=2, size=32, steps=1, rounds=1, threads=1), result)
    assert "MALLOC_" in result.figures["not_run"]["memory kept"]
    assert not result.ratios and not result.spreads
