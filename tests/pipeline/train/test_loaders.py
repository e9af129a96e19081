"""A run's loaders: one graph for all its validations, which ends with the run."""

import shutil
import weakref
from contextlib import closing

import pytest
import torch
from one_process import config_of, train_here

from pipeline.data.dali import DecodeSettings, graph
from pipeline.data.index.manifest import open_manifest
from pipeline.ranks.world import World
from pipeline.train.loaders import Loaders

DECODE = DecodeSettings("cpu", torch.device("cpu"), 1)


@pytest.fixture
def made(monkeypatch) -> list[weakref.ref]:
    """The graphs that are made, in their order."""
    made, make_pipeline = [], graph.make_pipeline

    def recorded(*arguments):
        pipe = make_pipeline(*arguments)
        made.append(weakref.ref(pipe))
        return pipe

    monkeypatch.setattr(graph, "make_pipeline", recorded)
    return made


def open_loaders(root, runs, *options: str) -> Loaders:
    config = config_of(root, runs, *options)
    train_set, val_set = open_manifest(root, "train"), open_manifest(root, "val")
    return Loaders(config, World(), DECODE, train_set, val_set, 7)


def validation(loaders: Loaders) -> list[tuple[list[int], list[int], torch.Tensor]]:
    return [(b.positions.tolist(), b.labels.tolist(), b.images) for b in loaders.val()]


def test_validations_are_alike_and_share_a_graph_until_the_loaders_are_closed(
    small_data, tmp_path, made
):
    with closing(open_loaders(small_data, tmp_path)) as loaders:
        first, second = validation(loaders), validation(loaders)
        assert [one[:2] for one in first] == [one[:2] for one in second]
        assert sorted(sum((one[0] for one in first), []))[:30] == list(range(30))
        assert all(torch.equal(a[2], b[2]) for a, b in zip(first, second, strict=True))
        assert [one() is not None for one in made] == [True]
    assert [one() for one in made] == [None]
    loaders.close()  # again, as after a run that failed while it was closed
    assert [one[1] for one in validation(loaders)] == [one[1] for one in first]
    loaders.close()


def test_a_validation_that_was_left_does_not_reach_into_the_next(small_data, tmp_path):
    with closing(open_loaders(small_data, tmp_path)) as loaders:
        whole = validation(loaders)
        next(iter(loaders.val()))
        assert [one[0] for one in validation(loaders)] == [one[0] for one in whole]


def test_a_file_is_met_once_and_known_to_later_validations(small_data, tmp_path, made):
    root = shutil.copytree(small_data, tmp_path / "data")
    bad = open_manifest(root, "val").path(11)
    bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    shutil.rmtree(root / ".trainyard")
    with closing(open_loaders(root, tmp_path, "--data.bad_images=exclude")) as loaders:
        loader = loaders.val()
        first, found = [batch.labels.tolist() for batch in loader], loader.found
        assert [one.image for one in found] == [11]
        loaders.excluded.met_in_validation(found, World())
        loader = loaders.val()
        assert [batch.labels.tolist() for batch in loader] == first
        assert loader.found == []
        # The one that failed, its replay, and the one that stands.
        assert [one() is not None for one in made] == [False, False, True]


def test_a_run_makes_one_graph_for_its_validations_and_keeps_none(small_data, tmp_path, made):
    train_here(small_data, tmp_path, "--schedule.epochs=3")
    assert len(made) == 2  # of the training; of its largest images and all validations
    assert [one() for one in made] == [None] * 2
