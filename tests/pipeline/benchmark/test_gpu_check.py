"""What `gpu_check` does around its parts: their time, their ends, the table, and no GPU."""

from __future__ import annotations

import datetime
import json
import subprocess
import time
from pathlib import Path

import jobs
import pytest
import torch

from pipeline.benchmark import gpu_check
from pipeline.benchmark.gpu_check import PARTS, Part, TestCounts, run_part
from pipeline.system.failure import TrainingError

PACKAGE = "pipeline.benchmark"


@pytest.fixture(autouse=True)
def made_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Are found in the parts' processes too."""
    monkeypatch.syspath_prepend(Path(__file__).parent)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_sentence_and_code_2():
    ended = jobs.run(["-m", "pipeline.benchmark.gpu_check"])
    assert ended.codes == [2]
    (line,) = ended.text.strip().splitlines()
    assert line.startswith("error: ") and "NVIDIA GPU" in line


def test_an_installed_package_has_no_tests_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=f"of a checkout, which {tmp_path} is not; start it in"):
        gpu_check.main([])


def test_it_needs_nothing_but_pytorch_and_numpy():
    packages = "tqdm docstring_parser yaml horovod nvidia pyarrow PIL tensorboard"
    block = f"import sys; sys.modules.update(dict.fromkeys({packages.split()}))"
    modules = ["gpu_check", "norm", "step"]
    ended = jobs.run(["-c", "\n".join([block, *(f"import {PACKAGE}.{m}" for m in modules)])])
    assert (ended.codes, ended.text) == ([0], "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--parts=norm,stp", "--parts=norm,stp must be some of tests, norm, memory, loader, step"),
        ("--json=absent/x.json", "--json absent/x.json: the folder absent does not exist"),
    ],
)
def test_a_wrong_option_is_named(argv, message):
    with pytest.raises(ValueError, match=message):
        gpu_check.main([argv])


def test_all_parts_together_have_less_than_8_minutes():
    assert sum(part.budget_sec for part in PARTS.values()) <= 475


def test_the_file_is_called_after_the_gpu_and_the_day():
    path = gpu_check.default_path("NVIDIA H200 NVL", datetime.date(2026, 1, 31))
    assert path == jobs.REPOSITORY / "benchmarks" / "gpu_nvidia-h200-nvl_2026-01-31.json"


@pytest.mark.parametrize(
    ("name", "status", "reason", "ratios"),
    [
        ("done", "done", "", {"all": 7.0}),
        ("fails", "failed", "ValueError: no luck", {"first": 1.0}),
        ("misses", "missing", "ModuleNotFoundError: No module named 'PIL'", None),
        ("dies", "failed", "ended with code 3", None),
    ],
)
def test_a_part_ends_with_what_it_has_found_and_why(name, status, reason, ratios):
    found = run_part(Part(60.0, f"made_parts.{name}", 7))
    assert (found["status"], found["reason"]) == (status, reason)
    assert (found["result"] and found["result"]["ratios"]) == ratios


def test_a_part_runs_in_this_checkout_and_says_its_lines_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    found = run_part(Part(60.0, "made_parts.tells_where"))["result"]["raw"]
    root = str(jobs.REPOSITORY)
    assert found == {"folder": root, "first": root, "line_buffered": True}


def test_a_part_over_its_budget_is_killed_with_what_it_started():
    started = time.monotonic()
    found = run_part(Part(6.0, "made_parts.hangs"))
    assert time.monotonic() - started < 40
    assert (found["status"], found["reason"]) == ("over time", "ended after 6 s")

    def is_gone() -> bool:
        """Or waits for its new parent to notice."""
        ps = ["ps", "-o", "stat=", "-p", str(found["result"]["raw"]["child"])]
        return subprocess.run(ps, capture_output=True, text=True).stdout.strip() in ("", "Z")

    jobs.wait_for(is_gone, "the end of what the part had started", 20)  # it would sleep for 60 s


def test_the_tests_of_a_gpu_are_those_that_are_marked():
    found = gpu_check.gpu_test_files(jobs.REPOSITORY / "tests")
    assert str(jobs.REPOSITORY / "tests/pipeline/model/test_norm_on_gpu.py") in found
    assert __file__ not in found and str(Path(__file__).parent / "test_report.py") not in found


def test_tests_are_counted_as_far_as_they_came_the_slow_ones_last(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: long\n")
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        "@pytest.mark.slow\ndef test_one(): raise KeyboardInterrupt\n"
        "def test_two(): pass\n"
        "def test_three(): assert False\n"
        "def test_four(): pytest.skip('no')\n"
        "def test_five(absent): pass\n"
    )
    seen = []
    options = ["-q", "-p", "no:cacheprovider", str(tmp_path)]
    counts = TestCounts(lambda result: seen.append(dict(result.figures)))
    assert pytest.main(options, [counts]) == pytest.ExitCode.INTERRUPTED
    assert seen[-1] == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "which_failed": ["test_x.py::test_three", "test_x.py::test_five"],
    }


def test_one_json_holds_every_part_and_a_failed_one_is_an_error(tmp_path, capsys):
    path = tmp_path / "gpu.json"
    found = {"raw": {}, "ratios": {"worst_share_of_copy": 0.9}}
    parts = {
        "norm": {"status": "done", "seconds": 3.0, "reason": "", "result": found},
        "loader": {"status": "missing", "seconds": 1.0, "reason": "No DALI", "result": None},
    }
    gpu_check.finish(parts, path)
    content = json.loads(path.read_text())
    assert content["benchmark"] == "gpu-check"
    assert content["ratios"] == {"norm_worst_share_of_copy": 0.9}
    assert content["parts"] == parts
    assert {"cpu", "gpu"} <= content["machine"].keys() and "torch" in content["versions"]
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["norm", "done", "3.0"], ["loader", "missing", "1.0", "No", "DALI"],
    ]  # fmt: skip
    assert last == f"written to {path}"
    parts["tests"] = {"status": "failed", "seconds": 9.0, "reason": "1 failed", "result": None}
    with pytest.raises(TrainingError, match="failed: tests; the table has the reasons"):
        gpu_check.finish(parts, path)
    assert "tests" in json.loads(path.read_text())["parts"]
