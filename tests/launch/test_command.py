"""The command `trainyard`: what it runs, what it says of itself, and where it refuses to."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
from jobs import REPOSITORY

from launch import command
from launch.command import COMMANDS, main, other_package, shadowed
from launch.horovod_build import TOOLS
from launch.slurm import batch_scripts
from pipeline.config import ConfigError
from pipeline.config.reading import load_config
from pipeline.config.yaml_file import CONFIGS, shipped
from pipeline.system.failure import ExitCode, code_of, in_words
from pipeline.system.machine import versions
from pipeline.system.version import VERSION


def trainyard(*argv: str, folder: Path = REPOSITORY, **env: str) -> subprocess.CompletedProcess:
    """Runs the command as its script does, from a folder that Python does not search."""
    script = "import sys; sys.path.remove(''); sys.argv[0] = '/bin/trainyard'; "
    script += "from launch.command import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *argv],
        cwd=folder, env=jobs.environment(**env), capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_help_has_one_line_for_each_command(capsys, monkeypatch):
    for argv in ([], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["trainyard", *argv])
        main()
        said = capsys.readouterr().out
        assert re.findall(r"^  (\S+) +\S", said, re.M) == list(COMMANDS)
        assert all(len(line) <= 80 for line in said.splitlines())


def test_the_version_is_in_one_place(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["trainyard", "--version"])
    main()
    assert capsys.readouterr().out == f"trainyard {VERSION}\n"
    assert versions()["trainyard"] == VERSION
    assert f"\n## {VERSION} - " in (REPOSITORY / "CHANGELOG.md").read_text()
    assert f"\nversion: {VERSION}\n" in (REPOSITORY / "CITATION.cff").read_text()
    assert VERSION not in (REPOSITORY / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "trainyard has no command trian; did you mean train?"),
        (["zzz"], "trainyard has no command zzz; there are: train, launch, slurm, "),
        (["train", "--schedule.epoch=2"], "did you mean --schedule.epochs?"),
        (["prepare", "dmeo"], "there is no subcommand dmeo; did you mean demo?"),
        (["slurm", "--script", "resnet"], "there are: evaluate, prepare, resnet152_64gpu, "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_said_in_one_line_with_code_2(argv, message, tmp_path):
    done = trainyard(*argv, folder=tmp_path)
    assert (done.returncode, done.stdout) == (ExitCode.WRONG_INPUT, "")
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if c.module != "launch.slurm"])
def test_each_command_helps_under_its_own_name_without_torch(name, tmp_path):
    probe = tmp_path / "sitecustomize.py"
    probe.write_text(
        "import atexit, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
    )
    path = f"{tmp_path}:{REPOSITORY}"
    done = trainyard(name, "--help", folder=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0 and done.stderr == "False\n"
    assert done.stdout.startswith(f"usage: trainyard {name} ")


def test_python_m_still_helps_under_its_own_name(capsys):
    with pytest.raises(SystemExit):
        jobs.command_module("pipeline.train").main(["--help"])
    assert capsys.readouterr().out.startswith("usage: python -m pipeline.train ")


def package(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    return folder


def test_a_folder_with_another_package_of_the_name_is_refused(tmp_path):
    """Ranks are started by `python -m pipeline.train`, which would find that one first."""
    done = trainyard("runs", folder=package(tmp_path, "pipeline"))
    assert done.returncode == ExitCode.WRONG_INPUT
    assert done.stderr == (
        f"error: {tmp_path}/pipeline/__init__.py would be taken for trainyard's own package "
        f"pipeline, which is {REPOSITORY}/pipeline; start trainyard in another folder, without "
        "that one on PYTHONPATH, or rename it\n"
    )
    # It shows its help and version even there, and what PYTHONPATH brings is no other case.
    assert trainyard("--version", folder=tmp_path).stdout == f"trainyard {VERSION}\n"
    inner = tmp_path / "empty"
    inner.mkdir()
    done = trainyard("runs", folder=inner, PYTHONPATH=f"{REPOSITORY}:{tmp_path}")
    assert "would be taken" not in done.stderr
    done = trainyard("--version", folder=inner, PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert "pipeline/__init__.py would be taken for trainyard's own package" in done.stderr


def test_another_launch_is_in_the_way_of_those_commands_alone_that_start_from_it(
    tmp_path, monkeypatch
):
    (tmp_path / "launch.py").touch()
    monkeypatch.chdir(tmp_path)
    assert "/launch.py would be taken for trainyard's own package launch" in str(
        shadowed("launch.slurm")
    )
    assert shadowed("pipeline.train") is None


def test_a_checkout_and_a_link_to_it_are_no_other_package(tmp_path, monkeypatch):
    (tmp_path / "pipeline").symlink_to(REPOSITORY / "pipeline")
    monkeypatch.chdir(tmp_path)
    assert shadowed("pipeline.train") is None
    assert other_package("pipeline", [str(REPOSITORY)]) is None
    assert other_package("pipeline", []) is None, "an editable installation has a finder"


def test_a_folder_that_only_has_the_name_counts_where_no_package_comes_after_it(tmp_path):
    (tmp_path / "pipeline").mkdir()
    assert other_package("pipeline", [str(tmp_path), str(REPOSITORY)]) is None
    assert str(tmp_path / "pipeline") in str(other_package("pipeline", [str(tmp_path)]))


def test_a_shipped_configuration_is_taken_where_the_folder_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped("configs/demo.yaml") == CONFIGS / "demo.yaml"
    elsewhere = load_config(["--config", "configs/mini/plain-20.yaml"])
    monkeypatch.chdir(REPOSITORY)
    assert shipped("configs/demo.yaml") is None
    assert load_config(["--config", "configs/mini/plain-20.yaml"]) == elsewhere

    monkeypatch.chdir(tmp_path)
    for other in ("demo.yaml", "./configs/none.yaml", "configs/../setup.py", "/configs/demo.yaml"):
        assert shipped(other) is None, other
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/demo.yaml").write_text("run.seed: 7\n")
    assert load_config(["--config", "configs/demo.yaml"]).run.seed == 7
    with pytest.raises(ConfigError, match=r"near are: configs/own\.yaml|near are: .*demo\.yaml"):
        load_config(["--config", "configs/dmo.yaml"])


def test_which_file_it_took_is_said_once(tmp_path):
    argv = ["train", "--config=configs/demo.yaml", "--print-config"]
    done = trainyard(*argv, folder=tmp_path)
    line = f"configs/demo.yaml is not in this folder: taken from {CONFIGS}/demo.yaml\n"
    assert (done.returncode, done.stderr) == (0, line)
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    assert trainyard(*argv, folder=tmp_path, **torchrun).stderr == "", "rank 0 says it"
    assert trainyard(*argv).stderr == "", "the checkout has it"
    launched = trainyard("launch", "-np", "2", *argv, "--run.device=cpu", folder=tmp_path)
    assert launched.stderr == line, "the launcher says it for its ranks"


def test_ctrl_c_while_a_command_loads_leaves_no_traceback(tmp_path):
    """By a module that stands in for one of the command's and is interrupted."""
    (tmp_path / "psutil.py").write_text("raise KeyboardInterrupt\n")
    done = trainyard("doctor", folder=tmp_path, PYTHONPATH=f"{tmp_path}:{REPOSITORY}")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("name", ["resnet50_8gpu", "resnet50_8gpu.sh"])
def test_a_batch_script_is_printed_as_it_is(name, capsys):
    batch_scripts.show([name])
    assert capsys.readouterr().out == (REPOSITORY / "slurm/resnet50_8gpu.sh").read_text()


def test_the_extra_of_horovod_has_what_its_build_takes():
    text = (REPOSITORY / "setup.py").read_text()
    extra = text.partition("HOROVOD = [")[2].partition("]")[0]
    assert all(f'"{tool}"' in extra for tool in TOOLS)


def test_a_missing_dali_is_said_with_what_brings_it():
    for name in ("nvidia", "nvidia.dali"):
        error = ModuleNotFoundError(f"No module named '{name}'", name=name)
        assert "pip install 'trainyard[gpu]'" in in_words(error)
        assert code_of(error) == ExitCode.WRONG_INPUT
    assert code_of(ModuleNotFoundError("no", name="nvidia.other")) == ExitCode.FAILED


def test_the_table_names_modules_that_there_are():
    for name, (module, _, _) in COMMANDS.items():
        place = REPOSITORY.joinpath(*module.split("."))
        there = place.with_suffix(".py").exists() or (place / "__main__.py").exists()
        assert there or name == "launch", module
    assert command._ROOT == REPOSITORY


def test_no_message_names_a_page_that_a_wheel_does_not_have():
    found = []
    for top in ("pipeline", "launch"):
        for path in sorted((REPOSITORY / top).rglob("*.py")):
            nodes = list(ast.walk(ast.parse(path.read_text())))
            docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            words = (n for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
            page = re.compile(r"\bdocs/|\bCONTRIBUTING|\bREADME")
            wrong = [n for n in words if id(n) not in docstrings and page.search(n.value)]
            found += [f"{path.relative_to(REPOSITORY)}:{node.lineno}" for node in wrong]
    assert not found
