"""The pages say what is true of the source: names, files, messages, the drawing; and they build."""

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pages
import pytest
from jobs import REPOSITORY

from pipeline.config import setting_names

DOCS = REPOSITORY / "docs"
BUILD_PACKAGES = ("sphinx", "myst_parser", "furo")
GAP = "…"
_PARTS = "|".join(sorted({name.partition(".")[0] for name in setting_names() if "." in name}))
_SETTING = re.compile(rf"(?:--)?((?:{_PARTS})\.[a-z0-9_]+)(?:[=:].*)?")
_FILE = re.compile(
    r"(?:pipeline|launch|configs|docs|slurm|tests|benchmarks)/[\w/.-]+\.(?:py|yaml|sh|md|json|svg)"
)
_VARIABLE = re.compile(r"(?:HOROVOD|NCCL|OMP|TRITON)_[A-Z_]+")


def ids(page: Path) -> str:
    return page.name


def shown_commands() -> list[str]:
    """The commands whose help docs/commands.md shows."""
    return re.findall(r"^```\{help\} (.+)$", (DOCS / "commands.md").read_text(), re.M)


def python_files() -> list[Path]:
    return [f for part in ("pipeline", "launch") for f in sorted((REPOSITORY / part).rglob("*.py"))]


@cache
def source() -> str:
    return "".join(file.read_text() for file in python_files())


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
def test_what_a_page_names_exists(page):
    spans = pages.spans(page)
    settings = {match[1] for span in spans if (match := _SETTING.fullmatch(span))}
    modules = {name for name in settings if name.endswith(".py")}
    assert settings - modules - set(setting_names()) == set()

    files = {span for span in spans if _FILE.fullmatch(span)}
    assert [name for name in sorted(files) if not (REPOSITORY / name).exists()] == []

    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", pages.prose(page))
    # A page is written for the folder it lies in; an anchor is checked by the build.
    assert [link for link in links if not (page.parent / link).exists()] == []

    variables = {match[0] for span in spans if (match := _VARIABLE.match(span))}
    assert [name for name in sorted(variables) if name not in source()] == []


def test_the_layout_names_files_that_exist():
    page = (DOCS / "architecture.md").read_text()
    (layout,) = re.findall(r"## Where things live\n.*?```text\n(.*?)```", page, re.S)
    names = set(re.findall(r"[\w./-]+\.(?:py|md|yaml|sh)\b", layout))
    there = [
        path.relative_to(REPOSITORY).as_posix()
        for part in ("pipeline", "launch", "configs", "slurm", "docs")
        for path in (REPOSITORY / part).rglob("*.*")
    ]
    assert [n for n in sorted(names) if not any(f"/{p}".endswith(f"/{n}") for p in there)] == []


def test_the_readme_is_short_and_in_a_newcomers_order():
    text = (REPOSITORY / "README.md").read_text()
    assert len(text.splitlines()) < 150
    heads = ["Two commands", "Your own images", "Eight GPUs", "Slurm", "Looking at runs"]
    assert re.findall(r"^## (.+)$", text, re.M)[:5] == heads
    (commands,) = re.findall(r"## Two commands\n.*?```sh minutes\n(.*?)```", text, re.S)
    assert [line.split("#")[0].strip() for line in commands.splitlines()] == [
        "make train", "make test",
    ]  # fmt: skip


def test_the_readmes_figures_are_those_of_the_benchmarks():
    text = (REPOSITORY / "README.md").read_text()
    for name, ratio, shown in (
        ("demo_vs_plain", "demo_vs_plain_images_per_sec", "1.24 times the images"),
        ("loader", "loader_vs_dataloader", "2.3 times the images"),
        ("loader", "loader_vs_dataloader_jitter", "4.0 with the paper's"),
        ("scale", "fixed_vs_fast_2_horovod", "1.16 times as fast over Horovod"),
        ("scale", "fixed_vs_fast_2_torch", "1.13 over torch"),
    ):
        file = max((REPOSITORY / "benchmarks").glob(f"{name}_2cores_*.json"))  # the newest
        value = json.loads(file.read_text())["ratios"][ratio]
        number = shown.split()[0]
        assert shown in text
        assert abs(value - float(number)) <= 0.5 * 10 ** -len(number.partition(".")[2])


@pytest.mark.parametrize("name", ["runs", "report", "tensorboard"])
def test_the_readme_shows_each_view_of_runs_in_a_small_picture(name):
    picture = DOCS / "images" / f"{name}.png"
    assert f"(docs/images/{picture.name})" in (REPOSITORY / "README.md").read_text()
    assert 10_000 < picture.stat().st_size < 300_000


def source_of(page: Path) -> Path:
    """The file whose text a page shows: its own, or the one that it includes as a whole."""
    included = re.search(r"^```\{include\} (\S+)", page.read_text(), re.M)
    return page.parent / included[1] if included else page


def from_docs(module: str) -> ModuleType:
    """One of the extensions of Sphinx that lie with the pages."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(DOCS))


needs_docutils = pytest.mark.skipif(
    importlib.util.find_spec("docutils") is None, reason="needs docutils (extra docs)"
)
needs_sphinx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, BUILD_PACKAGES)), reason="needs the extra docs"
)


@cache
def source_texts() -> list[str]:
    fixed_texts = from_docs("from_source").fixed_texts
    made = {text for _, text in messages()}
    return list(made.union(*map(fixed_texts, python_files())))


@cache
def messages() -> list[tuple[str, str]]:
    """File and text of each message that docs/messages.md lists."""
    source = from_docs("from_source")
    files = [file for topic in source.TOPICS for file in source.files_of(topic)]
    return [(str(file), text) for file in files for text in source.message_texts(file)]


def entries() -> list[str]:
    """The entries of the page: messages, a colon, what causes them and how to fix it."""
    text = (DOCS / "troubleshooting.md").read_text()
    return re.findall(r"^- .+\n(?:  .+\n)+", text, re.M)


def quoted_messages() -> list[str]:
    heads = [entry.partition("`:\n")[0] + "`" for entry in entries()]
    return [quoted for head in heads for quoted in re.findall(r"`([^`]+)`", head)]


def test_troubleshooting_has_a_cause_and_a_fix_for_each_message():
    form = re.compile(r"- (?:`[^`]+`,\s+)*`[^`]+`:\n  .+\.\s+\*\*Fix:\*\* .+\.\n", re.S)
    assert [entry for entry in entries() if not form.fullmatch(entry)] == []
    assert len(quoted_messages()) > 110


def pattern(quoted: str) -> re.Pattern[str]:
    """What finds a quoted message in the texts of the source."""
    parts = [part for part in quoted.split(GAP) if part.strip(" :;,()")]
    assert parts
    return re.compile(".*".join(re.escape(part) for part in parts), re.S)


@needs_docutils
def test_every_quoted_message_is_still_in_the_source():
    patterns = {message: pattern(message) for message in quoted_messages()}
    gone = [m for m, found in patterns.items() if not any(map(found.search, source_texts()))]
    assert gone == []


# A rule that was broken, or what to do: after a semicolon, or told to the reader.
_SAYS_WHAT_TO_DO = re.compile(
    r"; .*\w| must | needs? |: (?:set|give|make|put|choose|look|call) |; did you mean"
    r"|there (?:is|are): |(?:stands?|is) above|^give |, remove them"
)


@needs_docutils
def test_every_message_says_what_to_do_or_troubleshooting_does():
    """What it needs: a rule or a fix in the text, or else an entry on the page."""
    explained = [pattern(quoted) for quoted in quoted_messages()]
    bare = [
        f"{file}: {text}"
        for file, text in messages()
        if not _SAYS_WHAT_TO_DO.search(text)
        and not text.startswith(("it ", "its "))
        and not any(entry.search(text) for entry in explained)
    ]
    assert len(messages()) > 300
    assert "\n".join(bare) == ""


@needs_docutils
def test_texts_that_are_made_apart_from_their_errors_are_listed_too():
    listed = {text for _, text in messages()}
    assert any(text.startswith("… is no run: there is no such folder") for text in listed)
    assert any("; did you mean" in text or "there are: " in text for text in listed)
    # A fix that has a name of its own does not stay a gap.
    assert any(text.endswith("to an address that all nodes reach") for text in listed)


@needs_docutils
def test_no_error_of_the_program_is_made_where_the_list_does_not_look(tmp_path):
    message_texts = from_docs("from_source").message_texts
    made = tmp_path / "made.py"
    made.write_text(
        'HINT = "choose another one"\n'
        "def f(path):\n"
        '    raise ConfigError(f"the path {path} is taken; {HINT}")\n'
        'log.warning("warning: %s is left out, %.1f%% of all", path, share)\n'
        'raise AssertionError("this cannot happen at all")\n'
    )
    assert message_texts(made) == [
        "the path … is taken; choose another one",
        "warning: … is left out, …% of all",
    ]


@needs_docutils
@pytest.mark.parametrize("command", shown_commands())
def test_help_shows_no_types_and_no_defaults_of_a_program(command):
    text = from_docs("from_source").help_text(command)
    assert re.findall(r"\(type:|default: (?:\[\]|False|True|None)\b", text) == []


@needs_sphinx
def test_readers_are_told_all_that_a_test_is_told_of_a_block():
    marked = from_docs("marked_blocks")
    assert set(marked.CAPTIONS) == set(pages.NEEDS)
    words = "needs an NVIDIA GPU and ImageNet, takes minutes"
    assert marked.caption(["gpu", "minutes", "imagenet"]) == words


@needs_sphinx
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
        marked = [block for block in pages.blocks(source_of(page)) if block.marks]
        marked = [block for block in marked if block.language == pages.SHELL]
        assert built.count('<div class="code-block-caption">') == len(marked), page.name
        assert not re.findall(
            r"(?:src|href)=\"(?:https?:)?//(?!github\.com)[^\"]+\.(?:js|css)", built
        )
