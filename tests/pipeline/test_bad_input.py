"""Bad input through the real commands: one sentence, exit code 2, and nothing lost."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jobs
import pytest
from jobs import copy_data
from one_process import train_here

from pipeline.data.index.manifest import open_manifest
from pipeline.data.order import epoch_permutation
from pipeline.system.failure import Reported
from pipeline.train.checkpoint import CheckpointFolder, read_verified
from pipeline.train.folder import read_metrics

AT_ONCE = 2  # commands side by side
ONE_EPOCH = ("--schedule.epochs=1", "--schedule.drop_epochs=[]")


def error_lines(job: jobs.Ranks) -> list[str]:
    return [line for line in job.text.splitlines() if line.startswith("error:")]


def assert_answered(job: jobs.Ranks, *parts: str) -> None:
    """All ranks end with code 2 and one line of error, which holds `parts`; no traceback."""
    assert set(job.codes) == {2}, job.text
    (line,) = error_lines(job)
    for part in parts:
        assert part in line
    assert "Traceback" not in job.text


@pytest.fixture(scope="module")
def finished(small_data, tmp_path_factory):
    """A run of 7 steps with checkpoints 6 and 7."""
    runs = tmp_path_factory.mktemp("finished")
    options = ("--run.checkpoint_every_steps=6", "--run.keep_checkpoints=2")
    yield train_here(small_data, runs, *options)
    shutil.rmtree(runs)


class Answers:
    """What each command said. They run side by side, since most of their time is imports."""

    def __init__(self, small_data: Path, finished: Path, folder: Path) -> None:
        self.small_data, self.finished, self.folder = small_data, finished, folder
        cases = [name for name in dir(self) if name.startswith("case_")]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = pool.map(lambda name: jobs.run(getattr(self, name)()), cases)
            self.jobs = dict(zip(cases, found, strict=True))

    def of(self, case: Callable[..., list[str]]) -> jobs.Ranks:
        return self.jobs[case.__name__]

    def data(self, name: str, change: Callable[[Path], object]) -> list[str]:
        """A training on a changed copy of the data."""
        root = copy_data(self.small_data, self.folder / name / "data")
        change(root)
        return jobs.train(root, self.folder / name)

    def run(self, name: str) -> Path:
        """The run folder of a copy of the finished run."""
        run = self.folder / name / "test"
        not_shared = shutil.ignore_patterns("lock", "log.txt", "metrics.jsonl")
        shutil.copytree(self.finished, run, copy_function=os.link, ignore=not_shared)
        return run

    def again(self, name: str, *options: str) -> list[str]:
        """The finished run started again with other settings."""
        return jobs.train(self.small_data, self.run(name).parent, *ONE_EPOCH, *options)

    def case_class_that_train_lacks(self):
        return self.data("class", lambda root: os.rename(root / "val/ring", root / "val/zebra"))

    def case_flat_val(self):
        def flatten(root: Path) -> None:
            for path in sorted((root / "val").rglob("*.JPEG")):
                path.rename(root / "val" / path.name)
            for folder in (root / "val").iterdir():
                if folder.is_dir():
                    folder.rmdir()

        return self.data("flat", flatten)

    def case_no_images(self):
        def clear(root: Path) -> None:
            for path in (root / "train").rglob("*.JPEG"):
                path.unlink()

        return self.data("zero", clear)

    def case_other_model(self):
        return self.again("model", "--model.depth=14")

    def case_other_seed(self):
        return self.again("seed", "--run.seed=12345")

    def case_other_data(self):
        root = copy_data(self.small_data, self.folder / "other data")
        next((root / "train" / "ring").iterdir()).unlink()
        return self.again("data", f"--data.root={root}")

    def case_damaged_checkpoints(self):
        run = self.run("damaged")
        for path in (run / "checkpoints").glob("step-*.pt"):
            half = path.read_bytes()[: path.stat().st_size // 2]
            path.unlink()
            path.write_bytes(half)
        return jobs.train(self.small_data, run.parent, *ONE_EPOCH)

    def case_evaluate_damaged(self):
        path = self.folder / "half.pt"
        path.write_bytes((self.finished / "checkpoints" / "best.pt").read_bytes()[:100_000])
        return ["-m", "pipeline.evaluate", "--checkpoint", str(path)]


@pytest.fixture(scope="module")
def answers(small_data, finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    yield Answers(small_data, finished, folder)
    shutil.rmtree(folder)


def test_a_class_that_training_lacks_is_named(answers):
    assert_answered(
        answers.of(Answers.case_class_that_train_lacks),
        "val has 1 class folder(s) that the training data lacks: zebra; remove them",
    )


def test_a_flat_val_folder_is_told_what_to_become(answers):
    assert_answered(
        answers.of(Answers.case_flat_val),
        "val holds 30 images but no class folders, so their labels cannot be known",
        "val/<class>/",
    )


def test_zero_images_are_told_what_is_looked_for(answers):
    assert_answered(
        answers.of(Answers.case_no_images), "train holds no images (.jpeg .jpg", "set data.root"
    )


def test_the_checkpoint_of_another_model_is_refused_with_both_values(answers):
    assert_answered(
        answers.of(Answers.case_other_model),
        "step-000000007.pt belongs to another run (model.depth: 8 in the checkpoint, 14 now)",
    )


def test_the_checkpoint_of_another_seed_is_refused_with_both_values(answers):
    assert_answered(
        answers.of(Answers.case_other_seed), "(run.seed: 0 in the checkpoint, 12345 now)"
    )


def test_the_checkpoint_of_other_data_is_refused_with_both_hashes(answers, small_data, finished):
    stored = read_verified(finished / "checkpoints" / "best.pt")["fingerprint"]
    digest = open_manifest(small_data, "train").digest
    assert digest in stored.values()
    job = answers.of(Answers.case_other_data)
    assert_answered(job, f"(data hash of train: {digest} in the checkpoint, ", " now)")


def test_damaged_checkpoints_do_not_start_a_run_from_scratch(answers):
    job = answers.of(Answers.case_damaged_checkpoints)
    assert_answered(job, "none of the 2 checkpoints in", "is whole", "remove the folder")
    for step in (6, 7):
        assert f"step-00000000{step}.pt is damaged" in job.text


def test_evaluate_refuses_a_damaged_checkpoint(answers):
    assert_answered(answers.of(Answers.case_evaluate_damaged), "half.pt is damaged: ")


def test_two_ranks_without_data_say_once_how_to_get_them(tmp_path):
    job = jobs.run(jobs.train(tmp_path / "nowhere", tmp_path / "runs"), ranks=2)
    assert_answered(
        job,
        f"error: the data directory {tmp_path}/nowhere does not exist",
        "python -m pipeline.prepare demo",
        "<root>/train/<wnid>/*.JPEG",
    )
    assert job.outputs[1].strip() == ""


def test_two_ranks_say_once_what_setting_is_unknown(tmp_path):
    job = jobs.run(jobs.train(tmp_path, tmp_path, "--model.depht=18"), ranks=2)
    assert_answered(job, "there is no setting --model.depht; did you mean --model.depth?")
    assert job.outputs[1].strip() == ""


def test_two_ranks_say_once_which_global_batches_they_can_share(tmp_path):
    job = jobs.run(jobs.train(tmp_path, tmp_path, "--data.global_batch_size=7"), ranks=2)
    assert_answered(
        job, "data.global_batch_size=7 is not divisible by 2 ranks; the nearest that are: 6 and 8"
    )
    assert job.outputs[1].strip() == ""


def test_a_run_in_use_is_left_alone_and_its_holder_named(small_data, tmp_path):
    run = tmp_path / "test"
    run.mkdir()
    with open(run / "lock", "w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        who = {"process": 4711, "host": "node9", "slurm_job": None, "since": "2026-11-29 08:00:00"}
        holder.write(json.dumps(who))
        holder.flush()
        message = "is in use by process 4711 on node9, since .*; wait for it or choose another"
        with pytest.raises(Reported, match=message):
            train_here(small_data, tmp_path)
    assert sorted(path.name for path in run.iterdir()) == ["lock"]


BAD_FILES = {
    # what: content made of the good one, what is said of it, local batch size, bad when scanned
    "truncated": (lambda good: good[: len(good) // 2], "cannot be decoded", 4, True),
    "empty": (lambda good: b"", "the file is empty", 2, True),
    "text": (lambda good: b"<html>404</html>", "no image header", 4, True),
    "cut later": (lambda good: good[:100], "has 100 bytes, the manifest recorded", 4, False),
}
CURES = {
    True: "go on without it by data.bad_images=exclude, or put a good copy there, which changes",
    False: "put back the file that was scanned and start again",
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_bad_file_met_while_training_is_named_and_ends_both_ranks(small_data, tmp_path, what):
    change, reason, local_batch_size, bad_when_scanned = BAD_FILES[what]
    step, rank = 3, 1
    position = 8 * step + 7  # the last image of the step: rank 1's, in its last micro-batch
    root = copy_data(small_data, tmp_path / "data")
    image = epoch_permutation(seed=0, epoch=0, num_images=50)[position]
    bad = root / open_manifest(small_data, "train").path(image).relative_to(small_data)
    if not bad_when_scanned:
        open_manifest(root, "train")
    bad.write_bytes(change(bad.read_bytes()))

    options = ["--run.checkpoint_every_steps=1", f"--data.local_batch_size={local_batch_size}"]
    job = jobs.run(jobs.train(root, tmp_path / "runs", *options), ranks=2)

    assert_answered(job, f"the image {bad} cannot be used", reason)
    (line,) = error_lines(job)
    assert f"(met at step {step} by rank {rank}); {CURES[bad_when_scanned]}" in line
    assert line in job.outputs[0]
    run = tmp_path / "runs" / "test"
    assert line == (run / "failure.txt").read_text().splitlines()[0]
    path, content = CheckpointFolder(run / "checkpoints", 3).latest()
    assert (path.name, content["step"], content["position"]) == ("step-000000003.pt", 3, 24)
    assert [(m["event"], m["step"]) for m in read_metrics(run / "metrics.jsonl")][1:] == [
        ("train", 3)
    ]
    shutil.rmtree(run)
