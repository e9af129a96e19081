"""The examples of docs/api.md run as they stand, in order, and it names all that there is."""

from __future__ import annotations

import re

import pages
import pytest
from jobs import REPOSITORY

import pipeline.api
from pipeline.prepare.demo import draw_demo
from pipeline.prepare.options import DemoOptions

PAGE = REPOSITORY / "docs" / "api.md"


@pytest.mark.usefixtures("one_core")
def test_its_examples_run(tmp_path, monkeypatch, capsys):
    draw_demo(DemoOptions(tmp_path / "data" / "demo", train=10, val=10))
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)
    blocks = [block for block in pages.blocks(PAGE) if block.language == "python"]
    assert len(blocks) == 7
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block.text, str(block), "exec"), names)
    assert "no setting schedule.epoch; did you mean schedule.epochs" in capsys.readouterr().out
    assert names["result"].finished and len(names["images"]) == 10
    assert tuple(names["batch"].shape) == (8, 3, 64, 64)


def test_it_names_every_public_name():
    text = PAGE.read_text()
    missing = [
        name
        for name in pipeline.api.__all__
        if not re.search(rf"`(?:pipeline\.(?:api\.)?)?{name}\b", text)
    ]
    assert missing == []


def test_it_names_every_field_of_a_result():
    text = PAGE.read_text()
    for kind in (pipeline.api.TrainResult, pipeline.api.EvaluateResult):
        public = [*kind.__dataclass_fields__, *(n for n in vars(kind) if n[0] != "_")]
        assert [name for name in public if f"`{name}" not in text] == []
