"""The parts of the pages that come from the program: help texts and error messages.

Two directives for Sphinx: `help` shows what a command says to --help, `messages` lists the texts of
errors and warnings of some modules. Tests read `message_texts` too.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

REPOSITORY = Path(__file__).resolve().parent.parent
GAP = "…"
"""Stands for what is known only when the message is made."""

TOPICS = {
    "settings": "pipeline/config pipeline/options.py pipeline/schedule.py pipeline/precision.py",
    "preparing": "pipeline/prepare.py pipeline/data/preparing",
    "data": "pipeline/data pipeline/excluding.py pipeline/preflight.py",
    "network": "pipeline/model",
    "testing": "pipeline/evaluate.py pipeline/evaluating pipeline/predict.py pipeline/export.py "
    "pipeline/weights pipeline/report.py pipeline/reporting",
    "benchmarks": "pipeline/benchmark.py pipeline/bench",
    "run": "pipeline",
    "launch": "launch",
}
"""Whose messages a topic has; of two topics with a file, it belongs to the first."""

_LEAST = 12  # letters of fixed text that make a message
_RAISING = re.compile(r"(Error|BadImage|BadContainer|Damaged\w+|PeerLost|Diverged|Reported)$")
_OTHERS = ("require", "wrong", "warning")
_FORMAT = re.compile(r"%[-+ #0-9.]*[sdgfrx]")


def help_text(command: str) -> str:
    """What `command`, such as "pipeline.prepare demo", prints for --help."""
    module, *first = command.split()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        importlib.import_module(module).main([*first, "--help"])
    return printed.getvalue().replace(f"{REPOSITORY}/", "")


def message_texts(module: Path) -> list[str]:
    """The messages of the errors and warnings in a Python file, in order, each once."""
    calls = [n for n in ast.walk(ast.parse(module.read_text())) if isinstance(n, ast.Call)]
    found: dict[str, None] = {}
    for call in sorted(calls, key=lambda call: call.lineno):
        if _is_message(call.func):
            for argument in [*call.args, *(word.value for word in call.keywords)]:
                text = _text(argument)
                if sum(c.isalpha() for c in text.replace(GAP, "")) >= _LEAST and " " in text:
                    found[re.sub(f"{GAP}+", GAP, _FORMAT.sub(GAP, text))] = None
    return list(found)


def files_of(topic: str) -> list[Path]:
    """The Python files of a topic, in order."""
    found: dict[Path, str] = {}
    for name, places in TOPICS.items():
        for place in (REPOSITORY / place for place in places.split()):
            for file in [place] if place.is_file() else place.rglob("*.py"):
                found.setdefault(file, name)
    return sorted(file for file, name in found.items() if name == topic)


def _is_message(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in _OTHERS or bool(_RAISING.search(name))


def _text(node: ast.expr) -> str:
    """The fixed parts of a string that an expression makes, gaps between; "" if it makes none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or GAP for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_text(node.left) or GAP) + (_text(node.right) or GAP)
    return ""


def fixed_texts(module: Path) -> Iterator[str]:
    """Every string of a Python file, with gaps where values stand."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp) and (text := _text(node)):
            yield _FORMAT.sub(GAP, text)


class Help(Directive):
    """`help` of one command, as it stands on a terminal."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """One literal block."""
        text = help_text(self.arguments[0])
        return [nodes.literal_block(text, text, language="text")]


class Messages(Directive):
    """The messages of the Python files that a topic of `TOPICS` has, as one list."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One bullet list, by module and line."""
        items = nodes.bullet_list()
        for text in (text for file in files_of(self.arguments[0]) for text in message_texts(file)):
            items += nodes.list_item("", nodes.paragraph("", "", nodes.literal(text, text)))
        return [items]


def setup(app: Any) -> dict[str, bool]:
    """Tells Sphinx the two directives."""
    os.environ["COLUMNS"] = "88"  # how wide help texts are
    app.add_directive("help", Help)
    app.add_directive("messages", Messages)
    return {"parallel_read_safe": True}
