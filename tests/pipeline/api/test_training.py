"""`pipeline.train`: what a call returns and raises, and that its process is as it was before."""

import dataclasses
import gc
import inspect
import json
import logging
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import ModuleType

import jobs
import numpy as np
import pytest
import torch
from jobs import REPOSITORY, small_settings
from nvidia.dali import Pipeline

import pipeline
from pipeline.api import ConfigError, Observer, TrainingError, TrainResult, Validation
from pipeline.api.settings import config_of_call
from pipeline.api.training import best_of
from pipeline.config import Config, setting_names
from pipeline.config.reading import load_config
from pipeline.model.resnet import ResNet
from pipeline.system.failure import STOP_SIGNALS
from pipeline.train.metrics import is_best

DEMO = REPOSITORY / "configs" / "demo.yaml"


def settings(data: Path, runs: Path, **other: object) -> dict[str, object]:
    """Those of `small_settings`, for two epochs of 7 and 6 steps."""
    config = load_config(small_settings(data, runs))
    found = {name: config.get(name) for name in setting_names()}
    return found | {name.replace("__", "."): value for name, value in other.items()}


def streams() -> tuple[object, ...]:
    """Where Python and what it calls write to."""
    return sys.stdout, sys.stderr, *(os.readlink(f"/proc/self/fd/{number}") for number in (1, 2))


@pytest.fixture(scope="module")
def lines() -> list[dict]:
    """What the callback of `trained` has got."""
    return []


@pytest.fixture(scope="module")
def trained(small_data, tmp_path_factory, lines) -> TrainResult:
    given = settings(small_data, tmp_path_factory.mktemp("runs"))
    return pipeline.train(DEMO, given, on_metrics=lines.append)


def test_the_result_is_the_runs_history_and_its_files(trained, lines):
    assert trained.finished and trained.stopped is None
    assert (trained.step, trained.total_steps) == (13, 13)
    assert [one.step for one in trained.history] == [7, 13]
    assert trained.last is trained.history[-1]
    assert trained.best.top1_correct == max(one.top1_correct for one in trained.history)
    stored = torch.load(trained.best_checkpoint, weights_only=True)
    gone = dataclasses.replace(trained, folder=trained.folder / "gone")
    assert gone.best_checkpoint is None, "its save has failed"
    assert stored["step"] == trained.best.step
    assert torch.load(trained.last_checkpoint, weights_only=True)["step"] == 13
    assert [line["top1"] for line in trained.lines("val")] == [v.top1 for v in trained.history]
    written = [json.loads(line) for line in (trained.folder / "metrics.jsonl").open()]
    assert lines == written == trained.lines()
    assert [line["event"] for line in lines].count("train") == 5


def test_the_best_validation_is_that_of_the_best_checkpoint():
    """As `metrics.is_best` decides at each of them."""
    raw = [
        Validation(9, correct, None, 1.0, step=step) for step, correct in enumerate([3, 5, 5, 4])
    ]
    averaged = [dataclasses.replace(raw[0], ema=raw[1]), dataclasses.replace(raw[1], ema=raw[3])]
    for history, step in ((raw, 2), (raw[:1], 0), (averaged, 0)):
        assert best_of(history).step == step
        assert step == max(n for n in range(len(history)) if is_best(history[: n + 1]))
    assert best_of([]) is None


def test_a_dict_a_file_and_a_config_are_one_configuration(small_data, tmp_path, trained):
    given = settings(small_data, tmp_path)
    nested = {"data": {}, "model": {}, "optim": {}, "schedule": {}, "run": {}}
    for name, value in given.items():
        part, _, rest = name.partition(".")
        if rest:
            nested[part][rest] = value
    config = Config(**{
        part: type(getattr(Config(), part))(**values) for part, values in nested.items()
    })  # fmt: skip
    found = [
        pipeline.train(one, {"run.name": f"run-{number}"})
        for number, one in enumerate((nested, config, given))
    ]
    assert [one.folder.name for one in found] == ["run-0", "run-1", "run-2"]
    for one in found:  # and each has the same bits as the first training of this process
        assert one.history == trained.history


def test_the_process_is_as_it_was(small_data, tmp_path, trained):
    log = logging.getLogger("trainyard")
    own = logging.NullHandler()
    log.addHandler(own)
    signal.setitimer(signal.ITIMER_REAL, 3000)
    torch.manual_seed(1234)  # not run.seed
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    def state() -> dict[str, object]:
        return {
            "signals": [signal.getsignal(signal.Signals[name]) for name in STOP_SIGNALS[1:]],
            "alarm": signal.getsignal(signal.SIGALRM),
            "log": (list(log.handlers), log.level, log.propagate, logging.raiseExceptions),
            "threads": (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")),
            "random": torch.get_rng_state().tolist(),
            "dtype": (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()),
            "garbage": (gc.isenabled(), gc.get_freeze_count()),
            "streams": streams(),
            "warnings": list(warnings.filters),
            "workers": {thread.name for thread in threading.enumerate()},
        }

    try:
        gc.unfreeze()  # what earlier tests have frozen here, some of which would die meanwhile
        gc.collect()
        before = state()
        pipeline.train(settings(small_data, tmp_path), {"run.threads": torch.get_num_threads() + 1})
        assert state() == before
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 2000
        left = [one for one in gc.get_objects() if type(one) in (Pipeline, ResNet)]
        assert left == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        log.removeHandler(own)


def test_memory_is_kept_for_the_next_step_and_given_back(small_data, tmp_path, monkeypatch):
    """By the pages that the kernel gives for the same bytes again and again."""
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    during = []

    def measure(line: dict[str, object]) -> None:
        during.append(_new_pages())

    assert pipeline.train(settings(small_data, tmp_path), on_metrics=measure).finished
    assert during[-1] < _PAGES / 10
    assert _new_pages() >= 4 * _PAGES


_BYTES = 96 << 20
_PAGES = _BYTES // os.sysconf("SC_PAGESIZE")


def _new_pages() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        b"x" * _BYTES
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.gpu
def test_a_gpus_memory_and_arithmetic_are_as_they_were(small_data, tmp_path):
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = True, False
    torch.zeros(1, device="cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    drawn = torch.cuda.get_rng_state().tolist()
    result = pipeline.train(settings(small_data, tmp_path), {"run.device": "cuda"})
    assert result.finished
    torch._C._cuda_clearCublasWorkspaces()  # which PyTorch keeps for the next product
    assert torch.cuda.memory_allocated() <= before + 2**20
    assert torch.backends.cudnn.allow_tf32 and not torch.backends.cudnn.benchmark
    assert torch.cuda.get_rng_state().tolist() == drawn


def test_a_second_training_says_each_line_once(small_data, tmp_path, trained, capsys):
    pipeline.train(settings(small_data, tmp_path))
    out = capsys.readouterr().out
    assert out.count("finished: ") == 1
    assert (tmp_path / "test" / "log.txt").read_text().count("finished: ") == 1


def test_an_interrupt_saves_and_returns_and_the_same_call_goes_on(small_data, tmp_path, trained):
    class Interrupts(Observer):
        def advance(self, position: int) -> None:
            if position == 9 * 8:
                os.kill(os.getpid(), signal.SIGINT)

    given = settings(small_data, tmp_path)
    stopped = pipeline.train(given, observers=[Interrupts()])
    assert (stopped.finished, stopped.stopped) == (False, "SIGINT")
    assert 9 <= stopped.step < 13 and len(stopped.history) == 1
    assert torch.load(stopped.last_checkpoint, weights_only=True)["step"] == stopped.step
    again = pipeline.train(given)
    assert again.finished and again.history == trained.history


@pytest.mark.parametrize("event", ["start", "train", "val", "done"])
def test_what_a_callback_raises_reaches_the_caller_as_it_is(event, small_data, tmp_path):
    # One of a file, which the run would take for its folder's.
    own = PermissionError(13, "of the callback", "elsewhere")
    its_cause = KeyError("behind it")

    def breaks(line: dict) -> None:
        if line["event"] == event:
            raise own from its_cause

    before = streams()
    with pytest.raises(PermissionError) as raised:
        pipeline.train(settings(small_data, tmp_path, schedule__epochs=1,
                                schedule__drop_epochs=[]), on_metrics=breaks)  # fmt: skip
    assert raised.value is own and own.__cause__ is its_cause
    assert streams() == before


def test_a_call_of_a_finished_run_changes_nothing(small_data, trained):
    before, written = streams(), trained.lines()
    again = pipeline.train(settings(small_data, trained.folder.parent))
    assert again.finished and again.history == trained.history and again.best == trained.best
    assert streams() == before and trained.lines() == written


def test_an_interrupt_that_a_callback_raises_is_no_error_of_the_run(small_data, tmp_path):
    def interrupts(_line: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.train(settings(small_data, tmp_path), on_metrics=interrupts)
    assert not (tmp_path / "test" / "failure.txt").exists()


def test_it_runs_in_a_thread_that_hears_no_signals(small_data, tmp_path, trained):
    found: list[TrainResult] = []
    thread = threading.Thread(
        target=lambda: found.append(pipeline.train(settings(small_data, tmp_path)))
    )
    thread.start()
    thread.join()
    assert found[0].finished and found[0].history == trained.history


def test_a_second_call_beside_one_is_refused(small_data, tmp_path, trained):
    said: list[str] = []

    def call_again(line: dict) -> None:
        if line["event"] != "start":
            return
        other = settings(small_data, tmp_path, run__name="other")
        for call in (
            lambda: pipeline.train(other),
            lambda: pipeline.evaluate(trained.folder),
        ):

            def tried(call=call) -> None:
                with pytest.raises(TrainingError) as refused:
                    call()
                said.append(str(refused.value))

            tried()
            thread = threading.Thread(target=tried)
            thread.start()
            thread.join()

    assert pipeline.train(settings(small_data, tmp_path), on_metrics=call_again).finished
    assert len(said) == 4 and not (tmp_path / "other").exists()
    assert said[0].startswith("pipeline.train cannot run beside pipeline.train, which has not ")
    assert said[2].startswith("pipeline.evaluate cannot run beside pipeline.train")
    assert said[0].endswith("wait for it, or start another process")


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        ("configs/dmeo.yaml", {}, "near are: .*demo.yaml"),
        (DEMO, {"schedule.epoch": 2}, "no setting schedule.epoch; did you mean schedule.epochs"),
        (DEMO, {"schedule.epochs": "many"}, "schedule.epochs=many must be"),
        (DEMO, {"data.local_batch_size": 0}, "data.local_batch_size=0 must"),
        (DEMO, {"resume": "gone.pt"}, "the checkpoint gone.pt does not exist"),
        ({"run.name": "a/b"}, {}, "run.name='a/b' must be a plain folder name"),
        (DEMO, {"run.seed": np.float64(0.5)}, "run.seed=0.5 must be a whole number"),
        (3, {}, "config=3 must be the path of a YAML file, a dict of settings or a Config"),
    ],
)
def test_a_wrong_setting_is_a_config_error(config, given, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        pipeline.train(config, {"run.dir": str(tmp_path), **given})


def test_settings_that_are_no_dict_are_a_config_error():
    with pytest.raises(ConfigError, match="settings=.*print.* must be a dict of settings"):
        pipeline.train(DEMO, print)


def test_numbers_of_numpy_and_pytorch_are_those_of_python():
    given = {
        "optim.base_lr": np.float64(0.1), "run.seed": np.int64(3), "data.flip": np.bool_(False),
        "schedule.drop_epochs": np.arange(1, 3), "optim.weight_decay": torch.tensor(0.5),
    }  # fmt: skip
    found = config_of_call({}, given)
    wanted = {
        "optim.base_lr": 0.1, "run.seed": 3, "data.flip": False,
        "schedule.drop_epochs": (1, 2), "optim.weight_decay": 0.5,
    }  # fmt: skip
    assert {name: found.get(name) for name in given} == wanted
    assert all(type(found.get(name)) is type(value) for name, value in wanted.items())


def test_wrong_data_and_a_run_of_another_configuration_are_value_errors(
    small_data, tmp_path, trained
):
    with pytest.raises(ValueError, match=r"nowhere.*") as raised:
        pipeline.train(settings(tmp_path / "nowhere", tmp_path))
    assert type(raised.value).__name__ != "Reported"
    copy = shutil.copytree(trained.folder, tmp_path / "test2")
    with pytest.raises(ValueError, match="model.depth: 8 in the checkpoint, 14 now"):
        pipeline.train(settings(small_data, copy.parent, run__name="test2", model__depth=14))


def test_groups_that_the_caller_has_made_are_refused_and_stay(small_data, tmp_path):
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(TrainingError, match="torch.distributed is initialised in this process"):
            pipeline.train(settings(small_data, tmp_path))
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


def test_without_dali_the_error_says_what_to_install(small_data):
    code = (
        "import sys, pipeline; sys.modules['nvidia.dali'] = None\n"
        f"settings = {{'data.root': {str(small_data)!r}}}\n"
        "for call in (lambda: pipeline.train(settings), lambda: pipeline.Loader('.')):\n"
        "    try:\n"
        "        call()\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(error.name, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=jobs.environment(), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    said = "nvidia.dali DALI, which reads the images, is not installed; run pip install"
    assert [line.startswith(said) for line in done.stdout.splitlines()] == [True, True]


def test_the_functions_are_the_packages_and_nothing_heavy_comes_with_them():
    code = (
        "import sys, pipeline, pipeline.api; from pipeline.api import ConfigError, TrainingError;"
        "assert {'Loader', 'evaluate', 'images', 'load', 'train'} <= set(dir(pipeline));"
        "assert pipeline.__version__ and '__version__' in dir(pipeline);"
        "pipeline.train, pipeline.evaluate; import pipeline.train.folder, pipeline.evaluate;"
        "print([name for name in ('torch', 'numpy', 'nvidia.dali', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=jobs.environment(), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"
    assert isinstance(pipeline.train, ModuleType) and isinstance(pipeline.evaluate, ModuleType)
    for name in ("train", "evaluate"):
        function = getattr(pipeline.api, name)
        assert inspect.signature(getattr(pipeline, name)) == inspect.signature(function)
        assert pickle.loads(pickle.dumps(getattr(pipeline, name))) is getattr(pipeline, name)
    with pytest.raises(AttributeError, match="no attribute 'trian'; there are: .*train"):
        pipeline.trian  # noqa: B018
