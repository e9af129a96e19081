"""Writes a configuration as a YAML that explains itself: every setting, with what it means."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, get_type_hints

import yaml

from pipeline.config import Config, lists
from pipeline.config.reading import field_docs

_WIDTH = 100


def commented(config: Config) -> str:
    """Every setting in force below its description; `--config` reads it back to an equal object.

    A setting that is not at its default has that beside it.
    """
    lines = ["# Every setting of pipeline.train. Those that are left out have the defaults."]
    defaults, hints = Config().values(), get_type_hints(Config)
    docs = field_docs(Config)
    part = ""
    for name, value in _parts_last(config.values()):
        owner, _, rest = name.rpartition(".")
        if owner != part:
            part = owner
            docs = field_docs(hints[owner])
            about = (hints[owner].__doc__ or "").split("\n")[0]
            lines += ["", f"# {about}", f"{owner}:"]
        indent = "  " if owner else ""
        lines += ["", *_comment(docs[rest], indent)]
        same = value == defaults[name]
        lines.append(
            f"{indent}{rest}: {_in_yaml(value)}"
            + ("" if same else f" # default: {_in_yaml(defaults[name])}")
        )
    return "\n".join(lines) + "\n"


def _parts_last(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The settings at the top, then those of each part together."""
    yield from sorted(values.items(), key=lambda pair: "." in pair[0])


def _comment(text: str, indent: str) -> list[str]:
    prefix = f"{indent}# "
    return textwrap.wrap(
        text, _WIDTH, initial_indent=prefix, subsequent_indent=prefix, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _in_yaml(value: Any) -> str:
    """A value on one line, as YAML has it."""
    text = yaml.safe_dump(lists(value), default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
