"""Each benchmark at a tiny size, as a user starts it. No speed decides anything here."""

import json
import subprocess
import sys
from pathlib import Path

import jobs
import pytest
from terminal import on_terminal

from pipeline.benchmark.__main__ import parse
from pipeline.config import ConfigError


def benchmark(tmp_path: Path, name: str, *options: str) -> dict:
    """The JSON of one benchmark run as a command."""
    path = tmp_path / f"{name}.json"
    argv = ["-m", "pipeline.benchmark", name, "--json", str(path), *options]
    ended = jobs.run(argv, TMPDIR=str(tmp_path))
    assert ended.codes == [0], ended.text
    found = json.loads(path.read_text())
    assert found["benchmark"] == name
    for ratio in found["ratios"]:
        assert f"{ratio} = " in ended.text
    assert {"cpu", "cores", "gpu"} <= found["machine"].keys()
    assert {"python", "torch", "commit"} <= found["versions"].keys()
    return found


def test_step_compares_the_program_with_a_bare_loop(tmp_path):
    options = ("--rounds=2", "--steps=2", "--images=4", "--size=32", "--threads=1", "--device=cpu")
    found = benchmark(tmp_path, "step", *options)
    assert set(found["ratios"]) == {
        "loop_vs_bare", "monitored_vs_silent", "monitoring_of_step",
        "bf16_channels_last_vs_fp32_row_major",
    }  # fmt: skip
    share = found["ratio_rounds"].pop("monitoring_of_step")["rounds"]
    silent, line = (
        found["raw"][f"{side}_images_per_sec"]["rounds"] for side in ("silent", "line_each_step")
    )
    assert share == pytest.approx([(a / b - 1) / 20 for a, b in zip(silent, line, strict=True)])
    assert all(one > 0 for found in found["ratio_rounds"].values() for one in found["rounds"])
    assert found["settings"]["device"] == "cpu"
    assert not list(tmp_path.glob("tmp*"))  # the run's own folder is gone


def test_norm_says_which_backends_can_run_and_times_those(tmp_path):
    options = ("--rounds=1", "--batch=2", "--pixels=32", "--depths=50", "--amps=bf16")
    argv = ["-m", "pipeline.benchmark", "norm", "--device=cpu", f"--json={tmp_path}/n.json"]
    said, shown = on_terminal([*argv, *options])
    assert "bf16 reference: can run here" in said
    assert "bf16 triton: its kernels need an NVIDIA GPU" in said
    assert "set --device=cuda" in said and "run.device" not in said
    assert "eager_of_copy_resnet50_bf16 = " in said
    assert "\x1b[Kmeasuring: norm bf16, shape 17 of 17: " in shown
    assert shown.endswith("\r\x1b[K")
    found = json.loads((tmp_path / "n.json").read_text())
    assert found["versions"].keys() >= {"python", "torch", "commit"}
    assert "NVIDIA GPU" in found["raw"]["not_run"]["triton bf16"]


def test_step_has_a_table_of_what_can_run_and_what_cannot(tmp_path):
    shape = ("--depths=18", "--amps=bf16", "--batch=2", "--pixels=32", "--sides=eager,triton")
    options = ("--parts=table", "--device=cpu", "--table_rounds=2", "--table_steps=1", *shape)
    found = benchmark(tmp_path, "step", *options)
    assert list(found["ratios"]) == ["eager_resnet18_bf16_of_roofline"]
    assert len(found["raw"]["eager_resnet18_bf16_images_per_sec"]["rounds"]) == 2
    assert set(found["raw"]["not_run"]) == {
        "eager_graph_resnet18_bf16",
        "triton_resnet18_bf16",
        "triton_graph_resnet18_bf16",
    }


def test_manifest_opens_in_processes_of_its_own(tmp_path):
    options = ("--rounds=1", "--images=2000", "--batch=8", "--rows=100,3000,20000")
    found = benchmark(tmp_path, "manifest", *options)
    growth = "plan_cost_20000_vs_1e2"
    assert set(found["ratios"]) == {"open_vs_aim", "rss_vs_aim", "plan_vs_aim", growth}
    # A batch's memory knows nothing of the manifest's length.
    peaks = [found["raw"][f"plan_peak_kb_{rows}"] for rows in ("1e2", "3000", "20000")]
    assert max(peaks) < 1.2 * min(peaks)
    assert found["raw"]["permutation_mb_20000"] == 0.08
    assert found["raw"]["plan_us_per_image_3000"]["median"] > 0
    assert found["ratios"]["open_vs_aim"] == found["raw"]["open_sec"]["median"] / 0.5
    assert found["raw"]["permutation_sec"]["median"] > 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lodaer"], "there is no benchmark lodaer; did you mean loader?"),
        (
            ["xyz"],
            "there is no benchmark xyz; there are: loader, train, norm, step, scale, manifest",
        ),
        ([], "the name of a benchmark is missing; there are: loader"),
        (["loader", "--thread=3"], "there is no setting --thread; did you mean --threads"),
        (["step", "--rounds=0"], "--rounds=0 must be at least 1"),
        (
            ["step", "--sides=eager,cudnn"],
            "--sides=eager,cudnn must be some of eager, triton, apex",
        ),
        (["norm", "--depths=50,18"], "--depths=50,18 must be some of 50, 101, 152 with commas"),
    ],
)
def test_a_wrong_command_is_named_with_the_nearest_right_one(argv, message):
    with pytest.raises(ConfigError) as caught:
        parse(argv)
    assert message in str(caught.value)


def test_help_and_wrong_names_load_nothing_heavy():
    script = (
        "import sys\n"
        "from pipeline.benchmark.__main__ import main\n"
        "from pipeline.system.failure import run_command\n"
        "try:\n    run_command(main, sys.argv[1:])\n"
        "finally:\n"
        "    heavy = {'torch', 'nvidia.dali', 'numpy', 'pyarrow', 'horovod'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy))\n"
    )
    for argv, text in ((["--help"], "manifest"), (["norm", "--help"], "--rounds"), (["x"], "x")):
        done = subprocess.run(
            [sys.executable, "-c", script, *argv],
            capture_output=True, text=True, cwd=jobs.REPOSITORY,
        )  # fmt: skip
        assert "heavy: []" in done.stdout, done.stdout + done.stderr
        assert text in done.stdout + done.stderr


def test_a_benchmark_refuses_to_be_started_under_horovodrun():
    ended = jobs.run(["-m", "pipeline.benchmark", "manifest"], HOROVOD_SIZE="2", HOROVOD_RANK="0")
    assert ended.codes == [2]
    assert "start them once, not under horovodrun" in ended.text


def test_a_json_that_cannot_be_written_is_refused_before_measuring(tmp_path):
    path = tmp_path / "absent" / "x.json"
    ended = jobs.run(["-m", "pipeline.benchmark", "step", f"--json={path}"])
    assert ended.codes == [2]
    assert f"the folder {path.parent} does not exist" in ended.text
