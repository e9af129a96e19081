"""A run's folder: one place defines its file names, and what is written there is read back."""

import ast
import json
import re

import jobs
from made_runs import CIFAR, RunMaker, start

from pipeline.train.folder import Holder, RunFolder, Stop, find_runs, run_of

CONTRACT = "pipeline/train/folder.py"
FILES = re.compile(
    r"^[*/.]*(config\.yaml|metrics\.jsonl|log\.txt|failure\.txt|stopped\.txt|origin\.txt|best\.pt"
    r"|step-.*|evaluate-.*|lock|checkpoints|tensorboard|profile|stacks|nccl"
    r"|csv|wandb|wandb\.json|mlflow\.json|\.mlruns)(\.partial)?$"
)
OTHERS = {
    ("pipeline/prepare/files.py", "lock"): "of a folder of data",
    ("pipeline/prepare/drawn.py", ".lock"): "of a drawn data set",
    ("launch/horovod_build.py", "lock"): "of a folder of builds",
    ("launch/horovod_build.py", "nccl"): "of the libraries to link against",
}


def names_in(path):
    """(line, text) of all that becomes part of a path, an operand of `/` or what a glob looks for,
    and of every text that is a file's name and nothing else."""
    for node in ast.walk(ast.parse(path.read_text())):
        parts = []
        if isinstance(node, ast.Constant) and "." in str(node.value):
            yield node.lineno, str(node.value)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            parts = [node.left, node.right]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            looks_for_names = node.func.attr in ("glob", "rglob", "with_name", "joinpath")
            parts = node.args if looks_for_names else []
        for part in parts:
            first = part.values[0] if isinstance(part, ast.JoinedStr) else part
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield from ((node.lineno, name) for name in first.value.split("/"))


def test_no_other_module_names_a_file_of_a_run():
    wrong = [
        f"{place}:{line}: {name}"
        for top in ("pipeline", "launch")
        for path in sorted((jobs.REPOSITORY / top).rglob("*.py"))
        if (place := str(path.relative_to(jobs.REPOSITORY))) != CONTRACT
        for line, name in sorted(set(names_in(path)))
        if FILES.match(name) and (place, name) not in OTHERS
    ]
    assert not wrong, "\n".join(wrong)


def test_the_holder_of_a_lock_is_read_back(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    assert run.holder() is None
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    here = Holder.here()
    run.lock.write_text(here.as_json)
    assert run.holder() == here
    assert here.is_here
    assert f"process {here.process} on {here.host}, Slurm job 77, since 20" in str(here)
    for text in ("", "{", "[]", "another job", '{"process": 1}'):
        run.lock.write_text(text)
        assert run.holder() is None


def test_a_stop_is_read_back_also_from_a_disk_that_had_no_room_for_it(tmp_path):
    run = RunFolder(tmp_path)
    assert run.stopped() is None
    run.record_stop("SIGTERM", 401)
    assert json.loads(run.stop.read_text()) == {"signal": "SIGTERM", "step": 401}
    assert run.stopped() == Stop("SIGTERM", 401)
    run.stop.write_text("")
    assert run.stopped() == Stop(None, None)


def test_what_a_start_said_is_that_of_the_last_one(tmp_path):
    run = RunFolder(RunMaker(tmp_path)("a", CIFAR, steps=400))
    assert run.last("start")["versions"] == {"torch": "2.13.0", "commit": "abc1234"}
    with open(run.metrics, "a", encoding="utf-8") as file:
        file.write(json.dumps(start(ranks=8)) + '\n{"ranks": 9}\n{"event": "sta')
    assert run.last("start")["ranks"] == 8
    assert run.last("of no kind") == {}


def test_a_run_is_known_by_its_checkpoints_and_its_configuration(tmp_path):
    run = RunFolder(RunMaker(tmp_path)("a", CIFAR, steps=400))
    for file in (run.checkpoints / "best.pt", run.config, run.path):
        assert run_of(file) == run
    assert run_of(tmp_path / "checkpoints" / "best.pt") is None
    assert run_of(run.path / "other.yaml") is None
    assert run_of(tmp_path / ("a" * 300)) is None  # no path that a system can look up


def test_runs_are_found_below_folders_and_not_inside_runs(tmp_path):
    make = RunMaker(tmp_path)
    outer, deep = make("a", CIFAR, steps=400), make("group/b", CIFAR, steps=400)
    make("a/inside", CIFAR, steps=400)
    make(".hidden/c", CIFAR, steps=400)
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "lock").touch()
    assert find_runs(tmp_path) == [outer, deep, tmp_path / "young"]
    assert find_runs(tmp_path / "nowhere") == []


def test_the_first_cause_stays(tmp_path):
    run = RunFolder(tmp_path)
    assert run.record_first_cause("the loss is nan")
    assert not run.record_first_cause("a rank is gone")
    assert run.first_cause() == "the loss is nan"
    half = tmp_path / ".partial-1-config.yaml"
    half.write_text("seed: 1")  # of a start that was killed a moment ago
    run.forget_last_end()
    assert not half.exists()
    assert run.first_cause() is None
    assert RunFolder(tmp_path / "nowhere").record_first_cause("no folder to write it into")


def test_looking_at_runs_needs_neither_torch_nor_numpy():
    probe = (
        "import sys, pipeline.runs.follow, pipeline.runs.listing, pipeline.runs.state\n"
        "print([name for name in ('torch', 'numpy', 'nvidia.dali') if name in sys.modules])"
    )
    assert jobs.run(["-c", probe]).text == "[]\n"
