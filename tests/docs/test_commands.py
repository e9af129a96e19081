"""The commands on the pages: those that run anywhere are run as they stand, the others parsed.

They run in a folder that looks like a checkout after `make train`, but for the size of the data
set and the length of the run: 20 training images and two epochs. A line that stands on several
pages runs once.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jobs
import pages
import pytest
from jobs import REPOSITORY

from launch.command import COMMANDS
from launch.slurm import batch_scripts
from pipeline.config import ConfigError

BLOCKS = [b for page in pages.pages() for b in pages.blocks(page) if b.language == pages.SHELL]
RUN = [block for block in BLOCKS if not block.marks]
PARSED = [block for block in BLOCKS if block.marks]
SERVED = [block for block in BLOCKS if block.marks == ("server",)]
PATIENCE_SEC = 120.0

# Words of the shell and programs of the system, whose own options are not looked at.
SYSTEM = {
    ".", "apptainer", "apt-get", "cd", "cp", "docker", "do", "done", "echo", "enroot", "export",
    "for", "git", "in", "ln", "mkdir", "mlflow", "pip", "salloc", "scancel", "scontrol", "ssh",
    "tensorboard", "umask", "wandb",
}  # fmt: skip
SBATCH = {"--nodes", "--array", "--no-requeue", "--time"}
PLAIN = (
    "launch.environment",
    "launch.horovod_build",
    "pipeline.benchmark.gpu_check",
    "pytest",
    "sphinx",
    "venv",
)
"""Modules whose options are not looked at."""

# What a command says of a file that is not there, after it has taken all its options.
ABSENT = re.compile(
    r"does not exist|is not a fold|is not a file|there is no run|there is no such folder"
    r"|cannot be read \(No such file"
)


# The pages' own training of two epochs: its run is `runs/short`, and `runs/demo` to the others.
THE_RUN = (
    "horovodrun -np 2 python -m pipeline.train --config configs/demo.yaml --schedule.epochs=2 "
    "--schedule.drop_epochs=[1] --run.name=short"
)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which commands run."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "slurm", "pipeline", "launch", ".venv", "Makefile"):
        if (REPOSITORY / name).exists():
            (folder / name).symlink_to(REPOSITORY / name)
    draw = "python -m pipeline.prepare demo --out data/demo --train 20 --val 20"
    for command in (draw, THE_RUN, "cp -r runs/short runs/demo"):
        done = bash(command, folder)
        assert done.returncode == 0, done.stdout
    return folder


def bash(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs commands as a person does who has activated the environment."""
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder, env=environment(folder), timeout=PATIENCE_SEC, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    return jobs.environment(XDG_CACHE_HOME=str(folder / "cache"))


@pytest.fixture(scope="module")
def finished() -> set[str]:
    """Lines that have run, to which tests add theirs."""
    return {THE_RUN}


@pytest.mark.parametrize("block", RUN, ids=str)
def test_the_commands_of_a_block_run(block, checkout, finished):
    if ".venv/" in block.text and not (checkout / ".venv").exists():
        pytest.skip("needs the environment of `make train`")
    lines = [without_comment(line) for line in block.text.replace("\\\n", " ").splitlines()]
    new = [line for line in lines if line not in finished]
    done = bash("\n".join(new), checkout)
    assert done.returncode == 0, done.stdout
    finished.update(new)


def without_comment(line: str) -> str:
    return re.sub(r"(^|\s+)#.*", "", line).strip()


def test_what_the_readme_does_from_python_runs(checkout):
    (block,) = [b for b in pages.blocks(REPOSITORY / "README.md") if b.language == "python"]
    done = bash(f"python - <<'END'\n{block.text}END", checkout)
    assert done.returncode == 0, done.stdout
    # A class of the demo's and a share.
    assert re.search(r"^[a-z]+ (?:0\.\d+|1\.0|0\.0)$", done.stdout, re.M), done.stdout


@pytest.mark.parametrize("block", SERVED, ids=str)
def test_a_server_starts_and_ends_when_it_is_told(block, checkout):
    (command,) = commands(block.text)
    log = checkout / "server.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            # Any free port: the usual one may be taken.
            [*command, "--port=0"],
            cwd=checkout, env=environment(checkout), stdout=file, stderr=file,
        )  # fmt: skip
        try:
            jobs.wait_for(lambda: "http://localhost:" in log.read_text(), "its address")
        finally:
            server.send_signal(signal.SIGINT)
            server.wait(timeout=PATIENCE_SEC)


@pytest.mark.parametrize("block", PARSED, ids=str)
def test_what_cannot_run_anywhere_is_what_the_program_takes(block, tmp_path, monkeypatch):
    done = subprocess.run(["bash", "-n", "-c", block.text], capture_output=True, check=False)
    assert done.stderr == b""
    enter_empty_checkout(tmp_path, monkeypatch)
    for command in commands(block.text):
        check(command)


@pytest.mark.parametrize("page", pages.pages(), ids=lambda page: page.name)
def test_commands_within_sentences_too(page, tmp_path, monkeypatch):
    enter_empty_checkout(tmp_path, monkeypatch)
    programs = ("trainyard ", "python -m", "horovodrun -np", "torchrun -", "make ", "sbatch ")
    # A name in capitals or dots stand for what the reader puts there.
    # So does a launcher's command without a program.
    open_ended = re.compile(r"\b(NAME|FILE|JOB|DIR)\b|\.\.\.|…|<|^(torch|horovod)run (?!.* -m )")
    for span in pages.spans(page):
        if span.startswith(programs) and not open_ended.search(span):
            for command in commands(span):
                try:
                    check(command)
                except ConfigError as error:
                    # What names no options stands for a command that needs some.
                    assert re.search("is missing|not nothing|^give either", str(error)), error


@pytest.mark.parametrize(
    "command",
    [
        "python -m pipeline.train --config configs/demo.yaml --schedule.epoch=2",
        "python -m pipeline.train --config configs/demo.yaml --schedule.epochs=many",
        "python -m pipeline.prepare verify --root data/demo --fully",
        "python -m pipeline.evaluate --checkpoint a.pt --protocl 10-crop",
        "python -m pipeline.benchmark loader --rounds=few",
        "horovodrun -np 2 python -m pipeline.export --weigths a.pth",
        "torchrun --nproc-per-node=2 -m pipeline.train --config configs/dmeo.yaml",
        "sbatch slurm/resnet50_8gpu.sh --launch.doktor=false",
        "sbatch slurm/resnet51_8gpu.sh",
        "make trian",
        "trainyard trian",
        "trainyard launch -np 8 train --data.rooot=x",
        "pyhton -m pipeline.train",
        "trainyard train --schedule.epoch=2",
        "trainyard slurm --script resnet51_8gpu",
    ],
)
def test_a_command_that_the_program_would_refuse_is_found(command, tmp_path, monkeypatch):
    enter_empty_checkout(tmp_path, monkeypatch)
    with pytest.raises((AssertionError, ConfigError)):
        check(shlex.split(command))


def enter_empty_checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout without data or runs: commands that would work on them end after parsing."""
    for name in ("configs", "slurm", "Makefile"):
        (folder / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(folder)


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a script, as words; comments and pipes are taken off."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word in (";", "|", "&&"):
                if command:
                    yield command
                command = []
            else:
                command.append(word)


def check(words: list[str]) -> None:
    """Raises unless the program takes this command; nothing is trained or measured."""
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    # A variable of the shell stands for one of its values.
    words = [re.sub(r"\$\{?\w+\}?", "1", word) for word in words]
    while words and words[0] in ("do", "then"):
        words = words[1:]
    name = words[0].rpartition("/")[2] if words else "."
    if name.startswith("python"):
        if words[1].endswith(".py"):
            assert (REPOSITORY / words[1]).is_file(), words
            return
        assert words[1] == "-m", words
        check_module(words[2], words[3:])
    elif name == "trainyard":
        check_trainyard(words[1:])
    elif name in ("horovodrun", "srun"):
        check(words[next(i for i, word in enumerate(words) if "python" in word) :])
    elif name == "torchrun":
        check_module(*split_torchrun(words[1:]))
    elif name == "sbatch":
        check_batch(words[1:])
    elif name == "make":
        # What it would do; its recipes' own commands are checked where they have no variable.
        would = subprocess.run(["make", "-n", *words[1:]], capture_output=True, text=True)
        assert would.returncode == 0, would.stderr
        for line in would.stdout.splitlines():
            if re.match(r"\S*(python|horovodrun|torchrun)\S* ", line) and "$" not in line:
                for command in commands(line):
                    check(command)
    else:
        assert name in SYSTEM, f"{name}: no test knows this program"


def split_torchrun(words: list[str]) -> tuple[str, list[str]]:
    """The module that torchrun starts and its options, by torchrun's own parser."""
    from torch.distributed.run import parse_args

    taken = parse_args(words)
    assert taken.module, words
    return taken.training_script, taken.training_script_args


def check_trainyard(words: list[str]) -> None:
    """A command of the installed package, by the module that it stands for."""
    name, *options = words
    if name in ("--help", "--version"):
        return
    assert name in COMMANDS, f"trainyard has no command {name}"
    command = COMMANDS[name]
    if options[:1] == [batch_scripts.OPTION]:
        batch_scripts.show(options[1:])
        return
    check_module(command.module, [*command.options, *options])


def check_batch(words: list[str]) -> None:
    """sbatch's own options, the script, and what its last line makes of the rest."""
    while words[0].startswith("-"):
        assert words.pop(0).partition("=")[0] in SBATCH, words
    script = Path(words[0])
    assert script.is_file(), f"there is no {script}"
    last = shlex.split(script.read_text().splitlines()[-1])
    assert last[:3] == ["exec", "python", "-m"] and last[-1] == "$@"
    check_module(last[3], [*last[4:-1], *words[1:]])


def check_module(module: str, options: list[str]) -> None:
    """A command of ours, parsed by its own parser in a folder without data or runs."""
    if module == "pipeline.train":
        from pipeline.config.reading import load_config

        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            load_config(options, module, "")
        return
    if module == "launch.repeat":
        return check(options)
    if module == "launch.local":
        from launch.local import split as split_local

        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            _, program = split_local(options)
            check_module(program.module, list(program.options))
        return
    if module == "launch.slurm":
        from launch.slurm.options import split

        _, program = split(options)
        check_module(program.module, list(program.options))
        return
    if module == "launch.doctor":
        from launch.doctor.__main__ import _parse

        _, settings = _parse(options)
        check_module("pipeline.train", settings)
        return
    if module in PLAIN:
        assert importlib.util.find_spec(module) is not None, module
        return
    assert module.startswith("pipeline."), f"{module}: no test knows this module"
    program = jobs.command_module(module)
    # With a parser of their own they stop there; the others stop at the first file they want.
    take = getattr(program, "parse", None) if hasattr(program, "OPTIONS") else None
    try:
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            (take or program.main)(options)
    except ValueError as error:
        if not ABSENT.search(str(error)):
            raise
