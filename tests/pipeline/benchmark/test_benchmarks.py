"""Each benchmark at a tiny size, as its command runs it. No speed decides anything here."""

import importlib.util
import subprocess
import sys

import jobs
import pytest

from pipeline.benchmark import scale
from pipeline.benchmark.__main__ import main, parse
from pipeline.benchmark.allreduce import default_sizes
from pipeline.benchmark.options import TrainOptions
from pipeline.benchmark.photos import make_photos
from pipeline.benchmark.rank_options import ScaleOptions
from pipeline.benchmark.train import settings
from pipeline.config import ConfigError
from pipeline.data.batches import total_steps
from pipeline.system.failure import TrainingError

SHARES = ("data_wait", "agreement", "compute", "exposed_communication")
TRAIN = ("--device=cpu", "--depths=18", "--size=32", "--batch=4", "--steps=1")


def test_step_compares_the_program_with_a_bare_loop(benchmark):
    options = ("--rounds=2", "--steps=2", "--images=4", "--size=32", "--threads=1", "--device=cpu")
    found, _ = benchmark("step", *options)
    assert set(found["ratios"]) == {
        "loop_vs_bare", "monitored_vs_silent", "monitoring_of_step",
        "bf16_channels_last_vs_fp32_row_major", "mixup_of_step", "cutmix_of_step",
        "ema_of_step", "cosine_vs_silent", "save_background_vs_synchronous",
        "step_while_writing_vs_alone", "images_memory_kept_vs_returned",
        "peak_memory_kept_vs_returned",
    }  # fmt: skip
    share = found["ratio_rounds"].pop("monitoring_of_step")["rounds"]
    silent, line = (
        found["raw"][f"{side}_images_per_sec"]["rounds"] for side in ("silent", "line_each_step")
    )
    assert share == pytest.approx([(a / b - 1) / 20 for a, b in zip(silent, line, strict=True)])
    background, synchronous = (
        found["raw"][f"save_{kind}_exposed_sec"]["rounds"] for kind in ("background", "synchronous")
    )
    assert found["ratio_rounds"]["save_background_vs_synchronous"]["rounds"] == pytest.approx(
        [a / b for a, b in zip(background, synchronous, strict=True)]
    )
    assert all(one > 0 for found in found["ratio_rounds"].values() for one in found["rounds"])
    assert found["settings"]["device"] == "cpu"


def test_manifest_opens_in_processes_of_its_own(benchmark):
    options = ("--rounds=1", "--images=2000", "--batch=8", "--rows=100,3000,20000")
    found, _ = benchmark("manifest", *options)
    raw, growth = found["raw"], "plan_cost_20000_vs_1e2"
    assert set(found["ratios"]) == {"open_vs_aim", "rss_vs_aim", "plan_vs_aim", growth}
    # A batch's memory knows nothing of the manifest's length.
    peaks = [raw[f"plan_peak_kb_{rows}"] for rows in ("1e2", "3000", "20000")]
    assert max(peaks) < 1.2 * min(peaks)
    assert raw["permutation_mb_20000"] == 0.08
    assert raw["plan_us_per_image_3000"]["median"] > 0 < raw["permutation_sec"]["median"]
    assert found["ratios"]["open_vs_aim"] == raw["open_sec"]["median"] / 0.5


def test_allreduce_times_two_real_ranks_by_size_and_dtype(benchmark, monkeypatch):
    monkeypatch.setenv("HOROVOD_CYCLE_TIME", "1")
    found, text = benchmark("allreduce", "--device=cpu", "--rounds=2", "--sizes=8192,4096")
    assert "bus GB/s" in text
    assert found["settings"]["ranks"] == 2 and found["settings"]["device"] == "cpu"
    assert found["settings"]["engine"] == "horovod"
    assert found["settings"]["environment"]["HOROVOD_CYCLE_TIME"] == "1"
    rows = found["raw"]["by_size"]
    assert [(row["message"], row["bytes"]) for row in rows] == [
        ("fp32", 4096), ("fp32", 8192), ("fp16", 2048), ("fp16", 4096), ("fixed", 4096),
        ("fixed", 8192),
    ]  # fmt: skip
    for row in rows:
        rounds = found["raw"][f"{row['message']}_{row['bytes']}_bytes_sec"]["rounds"]
        assert len(rounds) == 2 and min(rounds) <= row["sec"] <= max(rounds)
        assert row["algorithm_bytes_per_sec"] == pytest.approx(row["bytes"] / row["sec"])
        assert row["bus_bytes_per_sec"] == pytest.approx(row["algorithm_bytes_per_sec"])  # 2 ranks
    for fit in found["raw"]["fit"].values():
        assert fit["latency_sec"] >= 0 and fit["sec_per_byte"] >= 0 and fit["tensor_sec"] >= 0
        assert fit["taken_share"] >= 0
    assert len(found["raw"]["fp32_taken_sec"]["rounds"]) == 2
    assert list(found["ratios"]) == ["fp16_vs_fp32_time"]


def test_allreduce_over_torch_needs_no_horovod(benchmark, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    options = ("--rounds=1", "--sizes=4096", "--sums=fixed")
    found, _ = benchmark("allreduce", "--device=cpu", *options)
    assert found["settings"]["engine"] == "torch"
    assert list(found["raw"]["fit"]) == ["fixed"] and found["ratios"] == {}


def test_allreduces_default_sizes_end_at_the_largest_of_the_device():
    assert default_sizes("cpu") == [4096 * 4**power for power in range(8)]
    assert default_sizes("cuda")[-1] == 256 * 2**20


def shares(found, side):
    """The side's shares by name, of its first round."""
    return {share: found["raw"][f"{side}_{share}_share"]["rounds"][0] for share in SHARES}


def test_scale_compares_ranks_with_lone_processes_and_one_alone(benchmark):
    found, text = benchmark(
        "scale", "--device=cpu", "--rounds=2", "--steps=2", "--images=4", "--size=32"
    )
    assert "exposed communication" in text
    others = ("torch_fixed", "horovod_fast", "torch_fast")
    assert list(found["ratios"]) == [
        "weak_scaling_2", "weak_scaling_2_by_cpu_time", "weak_scaling_2_of_alone",
        "strong_scaling_2_of_alone", *(f"weak_scaling_2_{way}" for way in others),
        "fixed_vs_fast_2_horovod", "fixed_vs_fast_2_torch", "decision_delay_of_step",
    ]  # fmt: skip
    assert found["raw"]["measured"].startswith("over horovod with run.sums=fixed")
    assert found["settings"]["ways"]["weak_2_torch_fast"] == {"engine": "torch", "sums": "fast"}
    assert len(found["ratio_rounds"]["weak_scaling_2"]["rounds"]) == 2
    communicate = ["weak_2", *(f"weak_2_{way}" for way in others), "strong_2", "late_2"]
    for side in ("alone", "apart_2", *communicate):
        assert len(found["raw"][f"{side}_images_per_sec"]["rounds"]) == 2
        assert sum(shares(found, side).values()) == pytest.approx(1.0)
    for side in ("alone", "apart_2"):
        assert shares(found, side)["exposed_communication"] < 0.2
    for side in communicate:
        assert shares(found, side)["exposed_communication"] > 0
        assert shares(found, side)["agreement"] > 0
    raw = found["raw"]
    speed, step = (raw[f"alone_{key}"]["rounds"][0] for key in ("images_per_sec", "step_sec"))
    assert speed == pytest.approx(4 / step)
    assert 0 < raw["alone_forward_backward_sec"]["rounds"][0] < step


def test_scale_warms_each_side_up_before_it_starts_the_next(monkeypatch):
    events = []

    class Recorded:
        def __init__(self, jobs: list) -> None:
            self._jobs = jobs

        def ask(self, steps: int) -> list:
            events.append(f"asked {len(self._jobs)}")
            return []

        def end(self) -> None:
            """Nothing was started."""

    def all_started(rounds: int, sides: dict) -> None:
        raise InterruptedError

    monkeypatch.setattr(scale, "start", lambda *job: events.append((job[2], job[3])))
    monkeypatch.setattr(scale, "Processes", Recorded)
    monkeypatch.setattr(scale, "interleave", all_started)
    with pytest.raises(InterruptedError):
        scale.run(ScaleOptions(device="cpu", ranks="1,2", sums="fixed"))
    horovod, torch = (2, "horovod"), (2, "torch")
    jobs = [event for event in events[4:] if event != "asked 1"]
    assert [event[0] for event in events[:2]] == [1, 1] and events[2:4] == ["asked 2", "asked 1"]
    assert jobs == [horovod, torch, horovod, horovod]  # weak over both, strong, late
    assert events[5::2] == ["asked 1"] * 4


def test_scale_waits_for_a_data_set(benchmark, small_data):
    options = ("--rounds=1", "--steps=2", "--images=4", "--size=32", "--ranks=1")
    found, _ = benchmark("scale", "--device=cpu", f"--data={small_data}", *options)
    assert found["ratios"] == {}
    assert shares(found, "alone")["data_wait"] > 0


def test_train_measures_a_run_from_jpegs_line_by_line(benchmark):
    found, text = benchmark("train", *TRAIN, "--rounds=2", "--files=6", "--classes=3")
    raw = found["raw"]
    assert found["ratios"] == {}  # the aims are those of a GPU
    assert len(raw["resnet18_images_per_sec"]["rounds"]) == 2  # two more lines warm up
    assert all(0 <= wait <= 1 for wait in raw["resnet18_data_wait_share"]["rounds"])
    assert raw["resnet18_run_sec"] > 0
    assert "Horovod" in raw["launched_as"]
    assert "resnet18" in text


def test_train_reports_why_a_run_failed(tmp_path):
    make_photos(tmp_path / "data", 4, classes=2)
    with pytest.raises(TrainingError) as caught:
        main(["train", *TRAIN, "--rounds=1", f"--data={tmp_path / 'data'}"])
    assert str(caught.value).startswith("the run of ResNet-18 failed: ")
    assert str(tmp_path / "data" / "val") in str(caught.value)
    assert not (tmp_path / "data" / ".trainyard").exists()  # nothing is written to the data


@pytest.mark.parametrize("images", [1, 7, 2048, 56_320, 1_281_167])
def test_the_length_of_a_training_is_its_lines_of_metrics(images):
    chosen = settings(TrainOptions(batch=256, rounds=9, steps=20), 50, "cuda", images)
    assert total_steps(chosen["schedule.epochs"], images, 256) == (9 + 2) * 20
    assert chosen["data.decode"] == "gpu"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "the name of a benchmark is missing; there are: loader"),
        ("lodaer", "there is no benchmark lodaer; did you mean loader?"),
        ("xyz", "there is no benchmark xyz; there are: loader, train, norm, step, scale, demo"),
        ("loader --thread=3", "there is no setting --thread; did you mean --threads"),
        ("loader --threads=0", "--threads=0 must be whole numbers of at least 1"),
        ("loader --containers=folders,zip", "--containers=folders,zip must be some of folders"),
        ("loader --crops=center", "--crops=center must be some of random_resized_crop"),
        ("step --rounds=0", "--rounds=0 must be at least 1"),
        ("step --sides=eager,cudnn", "--sides=eager,cudnn must be some of eager, triton, apex"),
        ("norm --depths=50,18", "--depths=50,18 must be some of 50, 101, 152 separated by"),
        ("train --depths=20", "--depths=20 must be some of 18, 34, 50, 101, 152"),
        ("train --classes=9 --files=8", "--classes=9 must not be more than --files=8"),
        ("allreduce --ranks=1", "--ranks=1 must be at least 2"),
        ("allreduce --sizes=4096,6", "--sizes=4096,6: 6 must be a multiple of 4 bytes"),
        ("allreduce --sizes=4k", "--sizes=4k must be whole numbers of at least 4"),
        ("allreduce --dtypes=bf16", "--dtypes=bf16 must be some of fp32, fp16"),
        ("scale --ranks=1,x", "--ranks=1,x must be whole numbers of at least 1"),
        ("scale --engines=mpi", "--engines=mpi must be some of horovod, torch separated by"),
        ("scale --sums=auto", "--sums=auto must be some of fixed, fast separated by"),
        ("allreduce --sums=exact", "--sums=exact must be some of fixed, fast separated by"),
        ("demo --engines=gloo", "--engines=gloo must be some of horovod, torch separated by"),
        ("demo --ranks=1", "--ranks=1 must be at least 2: the script is for ranks"),
        ("demo --workers=-1", "--workers=-1 must not be below 0"),
        ("demo --epochs=0", "--epochs=0 must be at least 1"),
        ("predict --decision_us=-1", "--decision_us=-1 must not be below 0"),
        ("scale --ranks=2,3", "--images=64 must be a multiple of each of --ranks=2,3"),
        ("predict --gpus=8,12", "--gpus=8,12: 12 must be whole nodes of --gpus_per_node=8"),
        ("predict --gpus=0", "--gpus=0 must be whole numbers of at least 1"),
        ("predict --depth=51", "--depth=51 must be one of 18, 34, 50, 101, 152"),
        ("predict --link_efficiency=1.5", "--link_efficiency=1.5 must be above 0 and at most 1"),
        ("predict --step_ms=0", "--step_ms=0 must be above 0"),
        ("predict --node_us=-1", "--node_us=-1 must not be below 0"),
        ("all --parts=loader,disk", "--parts=loader,disk must be some of loader, model, step"),
        ("all --model.depht=50", "no setting --model.depht; did you mean --model.depth"),
        ("all --model.depth=19", "model.depth=19 does not exist"),
        ("model --round_sec=0", "--round_sec=0 must be above 0"),
        ("model --config=none.yaml", "--config none.yaml cannot be read"),
        ("model --data.threads=2", "there is no setting --data.threads"),
    ],
)
def test_a_wrong_command_is_named_with_the_nearest_right_one(argv, message):
    with pytest.raises(ConfigError) as caught:
        parse(argv.split())
    assert message in str(caught.value)


def test_help_and_wrong_names_load_nothing_heavy():
    script = (
        "import sys\n"
        "from pipeline.benchmark.__main__ import main\n"
        "for argv in (['--help'], ['norm', '--help'], ['x']):\n"
        "    try:\n        main(argv)\n"
        "    except (SystemExit, ValueError) as error:\n        print(error)\n"
        "print('heavy:', {'torch', 'nvidia.dali', 'numpy', 'pyarrow', 'horovod'} & {*sys.modules})"
    )
    said = subprocess.check_output([sys.executable, "-c", script], text=True, cwd=jobs.REPOSITORY)
    assert said.endswith("heavy: set()\n")
    assert "--table_rounds" not in said and "--rounds" in said and "manifest" in said
    assert "there is no benchmark x" in said


def test_what_cannot_be_measured_here_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="how they share cores; lower --ranks to at most"):
        main(["allreduce", "--device=cpu", "--ranks=4096"])
    with pytest.raises(ConfigError, match="the folder .*absent does not exist"):
        main(["step", f"--json={tmp_path / 'absent' / 'x.json'}"])
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    with pytest.raises(ConfigError, match="start them once, not under horovodrun"):
        main(["manifest"])
