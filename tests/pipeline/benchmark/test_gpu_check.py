"""What `gpu_check` does around its parts: their time, their ends, the table, and no GPU."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import time

import jobs
import pytest
import torch

from pipeline.benchmark import gpu_check
from pipeline.benchmark.gpu_check import PARTS, Outcome, Part, TestCounts, Write
from pipeline.benchmark.result import Result, aligned
from pipeline.system.failure import TrainingError

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@WITHOUT_GPU
def test_without_a_gpu_it_is_one_sentence_and_code_2():
    ended = jobs.run(["-m", "pipeline.benchmark.gpu_check"])
    assert ended.codes == [2]
    (line,) = ended.text.strip().splitlines()
    assert line.startswith("error: ") and ("NVIDIA GPU" in line)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--parts=norm,stp"],
            "there is no part stp; there are: tests, norm, memory, loader, step",
        ),
        (["--json=absent/x.json"], "--json absent/x.json: the folder absent does not exist"),
    ],
)
def test_a_wrong_option_is_named(argv, message):
    with pytest.raises(ValueError, match=message):
        gpu_check.main(argv)


def test_all_parts_together_have_less_than_8_minutes():
    assert sum(part.budget_sec for part in PARTS.values()) <= 475


def test_the_file_is_called_after_the_gpu_and_the_day():
    path = gpu_check.default_path("NVIDIA H200 NVL", datetime.date(2026, 1, 31))
    assert path == jobs.REPOSITORY / "benchmarks" / "gpu_nvidia-h200-nvl_2026-01-31.json"


def test_a_command_over_its_budget_is_ended_with_what_it_started():
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    started = time.monotonic()
    ended = gpu_check.run_limited([sys.executable, "-c", script], 3.0)
    assert ended.code is None and time.monotonic() - started < 30

    def is_gone() -> bool:
        """Or waits for its new parent to notice."""
        ps = ["ps", "-o", "stat=", "-p", ended.text.strip()]
        return subprocess.run(ps, capture_output=True, text=True).stdout.strip() in ("", "Z")

    jobs.wait_for(is_gone, "the end of what the command had started", 20)  # it would sleep for 60 s


def test_a_command_within_its_budget_keeps_its_code_and_output():
    ended = gpu_check.run_limited([sys.executable, "-c", "print('x'); raise SystemExit(3)"], 60.0)
    assert (ended.code, ended.text) == (3, "x\n")


def test_a_part_without_its_packages_is_missing_not_failed(tmp_path, monkeypatch):
    (tmp_path / "PIL.py").write_text("raise ModuleNotFoundError(\"No module named 'PIL'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = gpu_check.run_part("loader", 60.0)
    assert found.status == "missing"
    assert "No module named 'PIL'" in found.reason


@WITHOUT_GPU
def test_a_part_that_fails_is_named_with_its_last_line(capsys):
    found = gpu_check.run_part("memory", 60.0)
    assert (found.status, found.result) == ("failed", None)
    assert found.reason == (
        "ValueError: --device=cuda needs an NVIDIA GPU and PyTorch sees none; use --device=cpu"
    )
    assert "gpu_check.py" in capsys.readouterr().out  # the end of its traceback


def test_the_tests_of_a_gpu_are_those_that_are_marked(tmp_path):
    (tmp_path / "a").mkdir()
    mark = "pytest.mark." + "gpu"  # in two, or this module would be one of them
    (tmp_path / "a" / "test_x.py").write_text(f"pytestmark = {mark}\n")
    (tmp_path / "test_y.py").write_text("pytestmark = pytest.mark.slow\n")
    (tmp_path / "z.py").write_text(f"{mark}\n")
    assert gpu_check.gpu_test_files(tmp_path) == [str(tmp_path / "a" / "test_x.py")]
    ours = gpu_check.gpu_test_files(jobs.REPOSITORY / "tests")
    assert str(jobs.REPOSITORY / "tests/pipeline/model/test_norm_on_gpu.py") in ours
    assert __file__ not in ours


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
    assert pytest.main(options, [TestCounts(seen.append)]) == pytest.ExitCode.INTERRUPTED
    assert seen[-1] == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "which_failed": ["test_x.py::test_three", "test_x.py::test_five"],
    }


def test_the_table_has_each_part_its_numbers_and_what_did_not_run():
    result = {
        "raw": {"triton_images_per_sec": {"median": 3000.0}, "not_run": {"apex": "not installed"}},
        "ratios": {"triton_vs_eager": 1.25},
    }
    outcomes = [
        Outcome("tests", "failed", 9.7, "1 failed", {"passed": 3, "failed": 1}),
        Outcome("step", "over time", 180.0, "ended after 180 s", result),
        Outcome("loader", "missing", 1.0, "No module named 'nvidia'"),
    ]
    rows = gpu_check.table(outcomes)
    assert rows == [
        ("part", "figure", "value"),
        ("tests", "failed, 10 s", "1 failed"),
        ("tests", "passed", "3"),
        ("tests", "failed", "1"),
        ("step", "over time, 180 s", "ended after 180 s"),
        ("step", "triton_images_per_sec", "3000"),
        ("step", "triton_vs_eager", "1.25"),
        ("step", "apex", "not run: not installed"),
        ("loader", "missing, 1 s", "No module named 'nvidia'"),
    ]
    assert len(aligned(rows)) == len(rows)
    assert outcomes[1].to_json()["result"]["ratios"] == {"triton_vs_eager": 1.25}


def test_one_json_holds_every_part_and_a_failed_one_is_an_error(tmp_path, capsys):
    outcomes = [
        Outcome("norm", "done", 3.0, "", {"raw": {}, "ratios": {"worst_share_of_copy": 0.9}}),
        Outcome("loader", "missing", 1.0, "No module named 'nvidia'"),
    ]
    path = tmp_path / "gpu.json"
    gpu_check.finish(outcomes, path)
    found = json.loads(path.read_text())
    assert found["benchmark"] == "gpu-check"
    assert found["ratios"] == {"norm_worst_share_of_copy": 0.9}
    assert found["parts"]["loader"]["status"] == "missing"
    assert {"cpu", "gpu"} <= found["machine"].keys() and "torch" in found["versions"]
    assert f"written to {path}" in capsys.readouterr().out
    with pytest.raises(TrainingError, match="failed: tests; the reasons"):
        gpu_check.finish([*outcomes, Outcome("tests", "failed", 9.0, "1 failed")], path)
    assert "tests" in json.loads(path.read_text())["parts"]


def test_a_part_writes_what_it_has_found_so_far(tmp_path, monkeypatch):
    path = tmp_path / "result.json"

    def ended_early(limit_sec: float, write: Write) -> Result:
        write(Result("norm", {}, {"first": limit_sec}).to_json({}))
        raise KeyboardInterrupt

    monkeypatch.setitem(PARTS, "norm", Part(10.0, ended_early))
    with pytest.raises(KeyboardInterrupt):
        gpu_check.run_here("norm", str(path), "7.5")
    assert json.loads(path.read_text())["ratios"] == {"first": 7.5}
    monkeypatch.setitem(PARTS, "norm", Part(10.0, lambda *_: Result("norm", {}, {"all": 1.0})))
    gpu_check.run_here("norm", str(path), "7.5")
    assert json.loads(path.read_text())["ratios"] == {"all": 1.0}
    assert list(tmp_path.iterdir()) == [path]
