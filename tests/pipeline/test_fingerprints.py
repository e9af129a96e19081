"""Runs of an earlier version resume: every configuration has the fingerprint that it had there.

fixtures/fingerprints.json holds, for each YAML in configs/, the facts that a checkpoint keeps of
it ("common" are those which all files share) and which of them are not compared at a resume. For a
new configuration, the failing test prints the entry to add. Another fact in an entry that is there
means that runs of that configuration cannot be resumed.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from jobs import REPOSITORY

from pipeline.config import later_defaults
from pipeline.config.reading import CONFIGS, load_config
from pipeline.train.state import compared, fingerprint

TABLE = json.loads(
    (Path(__file__).parent / "fixtures" / "fingerprints.json").read_text(encoding="utf-8")
)
HASHES = {"train": "0" * 64, "val": "1" * 64}
FILES = sorted(str(path.relative_to(REPOSITORY)) for path in CONFIGS.rglob("*.yaml"))
LISTED = sorted(TABLE["files"])


def facts_now(file: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """All facts of a configuration, and those that a resume compares."""
    config = load_config([f"--config={REPOSITORY / file}"], "", "")
    facts = fingerprint(config, HASHES)
    return facts, compared(facts, config)


def entry(file: str) -> str:
    """What the table would have to hold of a configuration."""
    facts, kept = facts_now(file)
    common = TABLE["common"]
    own = {name: v for name, v in facts.items() if name not in common or common[name] != v}
    idle = [name for name in facts if name not in kept]
    return json.dumps({file: {"facts": own, "not compared": idle}})


def told(facts: dict[str, Any], name: str) -> str:
    """A fact with its type's marks, a tuple being no list to a stored checkpoint."""
    return repr(facts[name]) if name in facts else "no such fact"


def test_the_table_has_the_configurations_that_there_are():
    missing = [entry(file) for file in FILES if file not in LISTED]
    assert missing == [], "add to fixtures/fingerprints.json"
    gone = [file for file in LISTED if file not in FILES]
    assert gone == [], "their runs cannot be resumed"


@pytest.mark.parametrize("file", [file for file in FILES if file in LISTED])
def test_a_configuration_has_the_facts_that_it_had(file):
    facts, _ = facts_now(file)
    wanted = TABLE["common"] | TABLE["files"][file]["facts"]
    differences = [
        f"{file}: {name} was {told(wanted, name)} and is {told(facts, name)}"
        for name in sorted(wanted.keys() | facts.keys())
        if told(wanted, name) != told(facts, name)
    ]
    assert differences == []


@pytest.mark.parametrize("file", [file for file in FILES if file in LISTED])
def test_the_same_facts_of_a_configuration_are_compared(file):
    facts, kept = facts_now(file)
    before = set(TABLE["files"][file]["not compared"])
    now = facts.keys() - kept.keys()
    assert [f"{file}: {name} was compared" for name in sorted(now - before)] == []
    assert [f"{file}: {name} was not compared" for name in sorted(before - now)] == []
    every = {**later_defaults(), **facts}  # as of a checkpoint that does not name them
    assert kept == {name: value for name, value in every.items() if name in kept}
