"""Runs that mix: the same bits after a kill and on another number of ranks; what is counted and
shown; what a resume refuses."""

from contextlib import closing
from pathlib import Path

import jobs
import pytest
import torch
from jobs import SABOTEUR
from one_process import config_of, train_here
from run_files import checkpoint_steps, metrics, state_differences

from pipeline.data.dali.settings import choose_decoding
from pipeline.data.index.manifest import open_manifest
from pipeline.ranks.places import Share
from pipeline.ranks.world import World
from pipeline.system.failure import Reported, StopSignal
from pipeline.train.monitor.monitor import Monitor
from pipeline.train.trainer import Trainer

MIXED = (
    "--data.mixup=0.4", "--data.cutmix=1", "--optim.label_smoothing=0.1",
    "--optim.class_weights=balanced", "--data.local_batch_size=4", "--schedule.epochs=2",
    "--schedule.drop_epochs=[1]", "--run.checkpoint_every_steps=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def uneven(small_data, tmp_path_factory) -> Path:
    """The small data set with one class of three images in place of five."""
    root = jobs.copy_data(small_data, tmp_path_factory.mktemp("data") / "uneven")
    folder = sorted((root / "train").iterdir())[0]
    for file in sorted(folder.iterdir())[:2]:
        file.unlink()
    return root


def test_killed_at_2_ranks_and_finished_by_1_it_has_the_bits_of_1_rank_alone(uneven, tmp_path):
    options = (*MIXED, "--optim.loss=bce")
    whole = train_here(uneven, tmp_path / "whole", *options)
    killed = [str(SABOTEUR), "kill-step:5:all", *jobs.small_settings(uneven, tmp_path), *options]
    ranks = jobs.run(killed, ranks=2)
    assert ranks.codes == [-9, -9], ranks.text
    assert checkpoint_steps(tmp_path / "test")[-1] == 4
    run = train_here(uneven, tmp_path, *options)
    assert "resuming from" in (run / "log.txt").read_text(encoding="utf-8")
    assert state_differences(run, whole) == []
    assert metrics(run) == metrics(whole)


class Seen(Monitor):
    """Keeps the pictures that it is given."""

    def __init__(self) -> None:
        self.batches = []

    def images(self, batch, position):
        self.batches.append(batch)


def made_trainer(data: Path, runs: Path, *options: str) -> Trainer:
    config = config_of(data, runs, *options)
    train_set, val_set = open_manifest(data, "train"), open_manifest(data, "val")
    decode = choose_decoding(config.data, torch.device("cpu"), Share(cores=1, gpu=0))
    trainer = Trainer(config, World(), decode, train_set, val_set, StopSignal())
    trainer.monitor = Seen()
    trainer.join_ranks()
    return trainer


def test_a_step_trains_and_shows_mixed_images_and_counts_on_the_larger_label(
    small_data, tmp_path, monkeypatch, one_thread
):
    trainer = made_trainer(small_data, tmp_path, "--data.mixup=1", "--data.local_batch_size=8")
    given, counted, forward, add = [], [], trainer.state.forward, trainer.state.window.add

    def seen(step, loss, logits, labels):
        counted.append(labels)
        return add(step, loss, logits, labels)

    monkeypatch.setattr(trainer.state.window, "add", seen)
    trainer.state.forward = lambda images: given.append(images) or forward(images)  # type: ignore
    with closing(trainer.loaders.train(0)) as loader:
        batches = [next(loader) for _ in range(6)]
    with closing(trainer.loaders), closing(trainer.feed()) as feed:
        trainer.train_epoch(feed, 6)
    expected = [trainer.objective.mixed(batch) for batch in batches]
    assert len({targets.share < 0.5 for _, targets in expected}) == 2, "choose another seed"
    for (images, targets), saw, labels, batch in zip(
        expected, given, counted, batches, strict=True
    ):
        assert torch.equal(images, saw) and not torch.equal(saw, batch.images)
        assert torch.equal(labels, targets.larger)
    (shown,) = trainer.monitor.batches  # type: ignore[attr-defined]
    assert torch.equal(shown.images, given[0])


def test_validation_has_the_plain_cross_entropy(small_data, tmp_path):
    """Near ln 10 for a network of ten classes that learns nothing, where bce is near ln 2."""
    still = ("--optim.base_lr=1e-30", "--optim.weight_decay=0", "--schedule.epochs=0.2")
    run = train_here(small_data, tmp_path, *still, *MIXED[:4], "--optim.loss=bce")
    train, val = (line for line in metrics(run) if line["event"] in ("train", "val"))
    assert 0.5 < train["loss"] < 1.0 < 1.9 < val["loss"]


def test_another_alpha_or_loss_is_another_run(small_data, tmp_path):
    train_here(small_data, tmp_path, "--data.mixup=0.2", "--schedule.epochs=0.2")
    for option, said in (
        ("--data.mixup=0", r"data\.mixup: 0\.2 in the checkpoint, 0\.0 now"),
        ("--data.mixup=0.4", r"data\.mixup: 0\.2 in the checkpoint, 0\.4 now"),
        ("--data.cutmix=1", r"data\.cutmix: 0\.0 in the checkpoint, 1\.0 now"),
        ("--optim.loss=bce", r"optim\.loss: cross_entropy in the checkpoint, bce now"),
        (
            "--optim.class_weights=balanced",
            r"optim\.class_weights: none in the checkpoint, balanced now",
        ),
    ):
        options = {"--data.mixup": "--data.mixup=0.2", option.partition("=")[0]: option}
        with pytest.raises(Reported, match=said):
            train_here(small_data, tmp_path, *options.values(), "--schedule.epochs=0.2")


def test_a_run_refuses_to_mix_micro_batches_of_one(small_data, tmp_path):
    with pytest.raises(Reported, match="makes micro-batches of one; raise data.local_batch_size"):
        train_here(small_data, tmp_path, "--data.cutmix=1", "--data.local_batch_size=1")
