"""A script that calls `pipeline.train` and `pipeline.evaluate` on each of two ranks."""

import json
from pathlib import Path

import jobs
import pytest
from jobs import REPOSITORY, small_settings

import pipeline
from pipeline.config import setting_names
from pipeline.config.reading import load_config
from pipeline.system.launched import Engine

SCRIPT = str(REPOSITORY / "tests" / "api_ranks.py")


def given(data: Path, runs: Path) -> dict[str, object]:
    config = load_config(small_settings(data, runs))
    return {name: config.get(name) for name in setting_names()}


def said(ranks: jobs.Ranks) -> list[dict]:
    assert ranks.codes == [0, 0], ranks.text
    return [json.loads(output.splitlines()[-1]) for output in ranks.outputs]


@pytest.mark.parametrize("engine", ["horovod", "torch"])
def test_each_rank_trains_and_tests_as_the_command_does(engine: Engine, small_data, tmp_path):
    """To the bits of one process, as the micro-batches are the same."""
    alone = pipeline.train(given(small_data, tmp_path / "alone"))
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps({"settings": given(small_data, tmp_path), "breaks at": None}))
    first, second = said(jobs.run([SCRIPT, str(asked)], 2, engine))
    assert first["called"][0] == "start" and first["called"][-1] == "done"
    assert second["called"] == []  # the callbacks are rank 0's
    assert first | {"called": []} == second
    assert first["stopped"][0] == "SIGTERM" and 9 <= first["stopped"][1] < 13
    assert first["finished"] and first["handler"]
    assert first["best"] == alone.best.step
    assert first["correct"] == [[v.step, v.top1_correct, v.loss] for v in alone.history]
    images, correct, loss, counted = first["tested"]
    assert (images, correct, counted) == (30, alone.best.top1_correct, 30)
    assert loss == pytest.approx(alone.best.loss, rel=1e-6)


@pytest.mark.parametrize(
    ("engine", "event", "told"),
    [("torch", "start", "of the callback"), ("horovod", "train", "rank 1 ends because another")],
)
def test_a_callback_that_fails_ends_both_ranks(engine: Engine, event, told, small_data, tmp_path):
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps({"settings": given(small_data, tmp_path), "breaks at": event}))
    first, second = said(jobs.run([SCRIPT, str(asked)], 2, engine))
    assert first == {"raised": "ZeroDivisionError", "message": "of the callback"}
    assert second["raised"] == "TrainingError" and told in second["message"]
