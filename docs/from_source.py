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
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

REPOSITORY = Path(__file__).resolve().parent.parent
GAP = "…"
"""Stands for what is known only when the message is made."""

TOPICS = {
    "settings": "pipeline/config pipeline/train/schedule.py pipeline/train/precision.py",
    "preparing": "pipeline/prepare",
    "data": "pipeline/data pipeline/train/excluding.py pipeline/train/preflight.py",
    "network": "pipeline/model",
    "testing": "pipeline/evaluate pipeline/predict.py pipeline/export pipeline/report",
    "benchmarks": "pipeline/benchmark",
    "run": "pipeline",
    "launch": "launch",
}
"""Whose messages a topic has; of two topics with a file, it belongs to the first."""

_LEAST = 12  # letters of fixed text that make a message
_RAISING = re.compile(
    r"(Error|BadImage|BadContainer|Damaged\w+|Unreadable\w+|NotWeights|PeerLost|Diverged|Reported)$"
)
_OTHERS = ("require", "wrong", "warning")
_FORMAT = re.compile(r"%[-+ #0-9.]*[sdgfrx]")


def command_module(name: str) -> ModuleType:
    """The module that `python -m name` runs."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


def help_text(command: str) -> str:
    """What `command`, such as "pipeline.prepare demo", prints for --help."""
    module, *first = command.split()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        command_module(module).main([*first, "--help"])
    return printed.getvalue().replace(f"{REPOSITORY}/", "")


def message_texts(module: Path) -> list[str]:
    """The messages of the errors and warnings in a Python file, in order, each once.

    That is what is given to a call that raises or warns, and what a function returns that is called
    for such a message anywhere in the program (`raise ValueError(why_no_run(folder))`).
    """
    tree = ast.parse(module.read_text())
    parts = [part for call in _calls(tree) if _is_message(call) for part in _arguments(call)]
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name in _asked_for_words():
            returns = (node for node in ast.walk(function) if isinstance(node, ast.Return))
            parts += [node.value for node in returns if node.value is not None]
    found: dict[str, None] = {}
    for part in sorted(parts, key=lambda part: part.lineno):
        text = _FORMAT.sub(GAP, _text(part, _constants(tree))).replace("%%", "%")
        if sum(c.isalpha() for c in text.replace(GAP, "")) >= _LEAST and " " in text:
            found[re.sub(f"{GAP}+", GAP, text)] = None
    return list(found)


@cache
def _asked_for_words() -> frozenset[str]:
    """Names of the functions that return whole messages, and of those that these ask in turn."""
    trees = [ast.parse(file.read_text()) for file in python_files()]
    messages = (call for tree in trees for call in _calls(tree) if _is_message(call))
    whole = [part for call in messages for part in _arguments(call) if isinstance(part, ast.Call)]
    asked = {part.func.id for part in whole if isinstance(part.func, ast.Name)}
    answers = (
        result.value
        for tree in trees
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name in asked
        for result in ast.walk(function)
        if isinstance(result, ast.Return) and result.value is not None
    )
    inner = (call.func for answer in answers for call in _calls(answer))
    return frozenset(asked | {name.id for name in inner if isinstance(name, ast.Name)})


def python_files() -> list[Path]:
    """All of the program."""
    return [f for part in ("pipeline", "launch") for f in sorted((REPOSITORY / part).rglob("*.py"))]


def _calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(word.value for word in call.keywords)]


def _constants(tree: ast.Module) -> dict[str, str]:
    """The texts that have one name in a module and no second value; what else is named, or named in
    other modules, stays a gap."""
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(_text(node.value))
    return {name: texts[0] for name, texts in found.items() if len(texts) == 1}


def files_of(topic: str) -> list[Path]:
    """The Python files of a topic, in order."""
    found: dict[Path, str] = {}
    for name, places in TOPICS.items():
        for place in (REPOSITORY / place for place in places.split()):
            for file in [place] if place.is_file() else place.rglob("*.py"):
                found.setdefault(file, name)
    return sorted(file for file, name in found.items() if name == topic)


def _is_message(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    # An AssertionError is a fault of the program and no message for its users.
    return name in _OTHERS or bool(_RAISING.search(name) and name != "AssertionError")


def _text(node: ast.expr, names: Mapping[str, str] = MappingProxyType({})) -> str:
    """The fixed parts of a string that an expression makes, gaps between; "" if it makes none.
    `names` are texts with names of their own."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, names) if isinstance(node.value, ast.Name) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, names) or GAP for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (_text(node.left, names) or GAP) + (_text(node.right, names) or GAP)
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
    """The messages of the Python files that a topic of `TOPICS` has, below each file's name."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """One bullet list for each file that has any."""
        lists: list[nodes.Node] = []
        for file in files_of(self.arguments[0]):
            items = [
                nodes.list_item("", nodes.paragraph("", "", nodes.literal(text, text)))
                for text in message_texts(file)
            ]
            if items:
                name = str(file.relative_to(REPOSITORY))
                lists += [nodes.paragraph("", "", nodes.emphasis(name, name))]
                lists += [nodes.bullet_list("", *items)]
        return lists


def setup(app: Any) -> dict[str, bool]:
    """Registers the two directives with Sphinx."""
    os.environ["COLUMNS"] = "88"  # how wide help texts are
    app.add_directive("help", Help)
    app.add_directive("messages", Messages)
    return {"parallel_read_safe": True}
