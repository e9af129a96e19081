"""The pages say what is true of the source: names, files, messages, the drawing; and they build."""

import importlib.util
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pages
import pytest
from jobs import REPOSITORY

from pipeline.config import setting_names

DOCS = REPOSITORY / "docs"
BUILD_PACKAGES = ("sphinx", "myst_parser", "furo")
GAP = "…"
_PARTS = "|".join(sorted({name.partition(".")[0] for name in setting_names() if "." in name}))
_SETTING = re.compile(rf"(?:--)?((?:{_PARTS})\.[a-z0-9_]+)(?:[=:].*)?")
_SUFFIXES = r"(?:py|yaml|sh|md|json|svg)"


def ids(page: Path) -> str:
    return page.name


def python_files() -> list[Path]:
    return [f for part in ("pipeline", "launch") for f in sorted((REPOSITORY / part).rglob("*.py"))]


@pytest.mark.parametrize("page", pages.pages(), ids=ids)
def test_every_block_says_what_it_is(page):
    wrong = [f"{block}: {flaw}" for block in pages.blocks(page) for flaw in pages.flaws(block)]
    wrong += [f"not fenced: {line}" for line in pages.indented_blocks(page)]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "flaw"),
    [
        ("```\nls\n```\n", "its language ''"),
        ("```text\npython -m pipeline.train\n```\n", "is not marked as sh"),
        ("```sh gpus\npython -m pipeline.train\n```\n", "unknown mark 'gpus'"),
    ],
)
def test_a_block_that_no_test_would_see_is_refused(text, flaw, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    (block,) = pages.blocks(page)
    assert flaw in " ".join(pages.flaws(block))


@pytest.mark.parametrize("page", pages.pages(), ids=ids)
def test_settings_that_are_named_exist(page):
    named = {match[1] for span in pages.spans(page) if (match := _SETTING.fullmatch(span))}
    modules = {name for name in named if name.endswith(".py")}
    assert named - modules - set(setting_names()) == set()


@pytest.mark.parametrize("page", pages.pages(), ids=ids)
def test_files_that_are_named_exist(page):
    folder = r"(?:pipeline|launch|configs|docs|slurm|tests|benchmarks)"
    named = {s for s in pages.spans(page) if re.fullmatch(rf"{folder}/[\w/.-]+\.{_SUFFIXES}", s)}
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("page", pages.pages(), ids=ids)
def test_links_between_pages_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", pages.prose(page))
    # A page is written for the folder it lies in; an anchor is checked by the build.
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", pages.pages(), ids=ids)
def test_variables_of_the_environment_that_are_named_are_used(page):
    named = {
        match[0]
        for span in pages.spans(page)
        if (match := re.match(r"(?:HOROVOD|NCCL|OMP|TRITON)_[A-Z_]+", span))
    }
    source = "".join(file.read_text() for file in python_files())
    assert [name for name in sorted(named) if name not in source] == []


def test_the_readmes_layout_names_files_that_exist():
    (layout,) = re.findall(r"## Where things live\n.*?```text\n(.*?)```", readme(), re.S)
    names = set(re.findall(r"[\w./-]+\.(?:py|md|yaml|sh)\b", layout))
    there = [
        path.relative_to(REPOSITORY).as_posix()
        for part in ("pipeline", "launch", "configs", "slurm", "docs")
        for path in (REPOSITORY / part).rglob("*.*")
    ]
    assert [n for n in sorted(names) if not any(f"/{p}".endswith(f"/{n}") for p in there)] == []


def readme() -> str:
    return (REPOSITORY / "README.md").read_text()


def test_the_modules_in_the_drawing_exist():
    drawing = (DOCS / "architecture.svg").read_text()
    text = " ".join(re.findall(r">([^<>]+)</text>", drawing))
    modules = re.findall(r"[\w/]+\.py\b|[\w/]+/(?=\s)", text)
    assert len(modules) > 20
    places = [REPOSITORY, REPOSITORY / "pipeline"]
    assert [m for m in modules if not any((place / m).exists() for place in places)] == []


def test_the_drawing_needs_no_network():
    drawing = (DOCS / "architecture.svg").read_text()
    assert set(re.findall(r"https?://[^\"' ]+", drawing)) == {"http://www.w3.org/2000/svg"}


@cache
def source_texts() -> list[str]:
    sys.path.insert(0, str(DOCS))
    try:
        from from_source import fixed_texts
    finally:
        sys.path.remove(str(DOCS))
    return [text for file in python_files() for text in fixed_texts(file)]


def quoted_messages() -> list[str]:
    text = (DOCS / "troubleshooting.md").read_text()
    return re.findall(r"^- `([^`]+)`\n  - \*\*Cause\.\*\* .+\n  - \*\*Cure\.\*\* .+$", text, re.M)


def test_troubleshooting_has_a_cause_and_a_cure_for_each_message():
    text = (DOCS / "troubleshooting.md").read_text()
    assert len(quoted_messages()) == len(re.findall("^- `", text, re.M)) > 50


@pytest.mark.skipif(
    importlib.util.find_spec("docutils") is None, reason="needs docutils (extra docs)"
)
@pytest.mark.parametrize("message", quoted_messages())
def test_a_quoted_message_still_stands_in_the_source(message):
    parts = [part for part in message.split(GAP) if part.strip(" :;,()")]
    assert parts
    pattern = re.compile(".*".join(re.escape(part) for part in parts), re.S)
    assert any(pattern.search(text) for text in source_texts()), message


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, BUILD_PACKAGES)), reason="needs the extra docs"
)
def test_the_pages_build_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", tmp_path / "cache", DOCS, tmp_path / "html"],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    for page in DOCS.glob("*.md"):
        built = (tmp_path / "html" / page.with_suffix(".html").name).read_text()
        assert str(REPOSITORY) not in built, page.name
        assert not re.findall(
            r"(?:src|href)=\"(?:https?:)?//(?!github\.com)[^\"]+\.(?:js|css)", built
        )
