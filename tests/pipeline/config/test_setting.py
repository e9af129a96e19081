"""What each setting says of itself, and that nobody keeps lists of settings elsewhere."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from typing import get_args

from jobs import REPOSITORY

from pipeline.config import Config, ModelConfig, names_for, names_of, setting_names, settings
from pipeline.config.setting import Command, Kind
from pipeline.model.network import network_facts

FIELDS = [
    f"{part.name}.{field.name}" if dataclasses.is_dataclass(value) else part.name
    for part in dataclasses.fields(Config)
    for value in [getattr(Config(), part.name)]
    for field in (dataclasses.fields(value) if dataclasses.is_dataclass(value) else [part])
]


def test_every_setting_says_its_kind_and_the_commands_that_take_it():
    assert setting_names() == FIELDS
    assert {said.kind for said in settings().values()} == set(get_args(Kind))
    for said in settings().values():
        assert set(said.commands) <= set(get_args(Command))
    assert all(names_for(command) for command in get_args(Command))


def test_the_kinds_part_all_settings():
    assert sorted(name for kind in get_args(Kind) for name in names_of(kind)) == sorted(FIELDS)
    assert names_of("start") == ["resume", "init", "profile"]
    assert names_of("kept") == ["data.output", "run.seed"]


def test_what_decides_the_network_is_what_the_network_says():
    said = {name for name, one in settings().items() if one.of_network}
    assert said == {f"model.{name}" for name in network_facts(ModelConfig(depth=50))}


def test_people_ask_for_settings_in_one_order():
    asked = sorted(said.asked for said in settings().values() if said.asked is not None)
    assert asked == list(range(1, len(asked) + 1))


def lists_of_settings(source: str) -> Iterator[int]:
    """Lines at which a list, tuple or set has two names of settings, or a dict has two as values.

    A dict that has them as keys gives them values, as a YAML does, and a wrong one fails at once.
    """
    known = set(setting_names())
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            parts = node.values if isinstance(node, ast.Dict) else node.elts
            names = [p.value for p in parts if isinstance(p, ast.Constant) and p.value in known]
            if len([name for name in names if "." in name]) > 1:
                yield node.lineno


def test_lists_of_settings_stand_in_the_configuration_alone():
    assert list(lists_of_settings('A = (\n"data.root", "run.seed")')) == [1]
    assert list(lists_of_settings('x\nA = {"b": "run.seed", "c": "data.root"}')) == [2]
    assert not list(lists_of_settings('A = ["data.root"]; B = {"data.root": 1, "run.seed": 2}'))
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for top in ("pipeline", "launch")
        for path in sorted((REPOSITORY / top).rglob("*.py"))
        if "pipeline/config/" not in str(path)
        for line in lists_of_settings(path.read_text())
    ]
    assert not found, f"the field of a setting says this, as `Setting` has it: {found}"
