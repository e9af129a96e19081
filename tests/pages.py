"""Reads the pages that people read: README.md and its neighbours, and docs/.

A block of commands is fenced as `sh`. One that needs what a plain machine does not have says so
after that word, as in "sh gpu imagenet"; every other one is run by tests/docs/test_commands.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from jobs import REPOSITORY

NEEDS = {
    "gpu": "an NVIDIA GPU",
    "cluster": "a Slurm cluster",
    "container": "Docker, Apptainer or Enroot",
    "imagenet": "ImageNet, or a network trained on it",
    "cifar-10": "CIFAR-10, or a network trained on it",
    "tracker": "the program of W&B, or all of mlflow",
    "own": "images of the reader's, and weights that others trained",
    "minutes": "minutes, or an environment to be set up",
    "server": "somebody to stop it",
}
SHELL = "sh"
_LANGUAGES = (SHELL, "text", "yaml", "json", "python")
_DIRECTIVE = re.compile(r"\{[a-z]+\}")
_FENCE = re.compile(r"( *)```(.*)")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_PROGRAM = re.compile(r"^\s*(python3?|horovodrun|make|sbatch|srun|pip|apt-get|tensorboard) ", re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line it begins at, its language, marks and text."""

    page: Path
    line: int
    language: str
    marks: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def pages() -> list[Path]:
    """README.md first, as what comes later may use what it makes."""
    top = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    return top + sorted((REPOSITORY / "docs").glob("*.md"))


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, lines = [], page.read_text().splitlines()
    at = 0
    while at < len(lines):
        opening = _FENCE.match(lines[at])
        if not opening:
            at += 1
            continue
        begin = at
        at += 1
        while lines[at].strip() != "```":
            at += 1
        indent, words = len(opening[1]), opening[2].split()
        text = "\n".join(line[indent:] for line in lines[begin + 1 : at]) + "\n"
        found.append(Block(page, begin + 1, words[0] if words else "", tuple(words[1:]), text))
        at += 1
    return found


def flaws(block: Block) -> list[str]:
    """What is wrong with how a block is marked."""
    if _DIRECTIVE.fullmatch(block.language):
        return []
    wrong = []
    if block.language not in _LANGUAGES:
        wrong.append(f"its language {block.language!r} is none of {', '.join(_LANGUAGES)}")
    if block.language != SHELL and (command := _PROGRAM.search(block.text)):
        wrong.append(f"it holds the command {command[0].strip()!r} and is not marked as sh")
    if block.language == SHELL:
        wrong += [f"it has the unknown mark {m!r}" for m in block.marks if m not in NEEDS]
    return wrong


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    text, inside = [], False
    for line in page.read_text().splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            text.append(line)
    return "\n".join(text) + "\n"


def indented_blocks(page: Path) -> list[str]:
    """First lines of blocks that are code by indentation alone."""
    found = re.findall(r"(?:^|\n)\n((?: {4}|\t)\S.*)", prose(page))
    return [str(line) for line in found]


def spans(page: Path) -> list[str]:
    """What stands between single backticks in the prose."""
    return [str(span) for span in _SPAN.findall(prose(page))]
