"""A loader goes on from its state with the very next image, and from no other loader's."""

from __future__ import annotations

import copy
import io
import json
import logging
import shutil

import numpy as np
import pytest
import torch
from jobs import copy_data
from loader_batches import batches_of, open_loader, positions_of, require_same

from pipeline.data.exclusion import Exclusions
from pipeline.data.images import BadImage
from pipeline.data.index.manifest import open_manifest
from pipeline.data.order import epoch_permutation


def state_after(loader, batches: int) -> dict:
    """The state after so many batches, in the middle of a `for`."""
    iterator = iter(loader)
    for _ in range(batches):
        next(iterator)
    return loader.state_dict()


def sent(state: dict) -> dict:
    """A state as a checkpoint holds it, read as weights alone are."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    read = torch.load(file, weights_only=True)
    assert json.loads(json.dumps(read)) == state
    return read


@pytest.mark.parametrize("drop_last", [False, True])
def test_it_goes_on_with_the_next_batch(small_data, drop_last):
    whole = open_loader(small_data, augment="trivial", drop_last=drop_last)
    epochs = [batches_of(whole), batches_of(whole)]
    for done in range(len(epochs[0]) + 1):
        cut = open_loader(small_data, augment="trivial", drop_last=drop_last)
        state = sent(state_after(cut, done))
        resumed = open_loader(small_data, augment="trivial", drop_last=drop_last)
        resumed.load_state_dict(state)
        following = whole.num_images if drop_last else 8 * done  # where epoch 1 begins
        assert resumed.epoch == 0
        assert resumed.position == (8 * done if done < len(epochs[0]) else following)
        assert resumed.state_dict() == state
        assert len(resumed) == len(epochs[0])
        rest = batches_of(resumed)
        assert len(rest) == len(epochs[0]) - done  # none after the last, and the epoch is over
        if rest:
            require_same(rest, epochs[0][done:])
        assert resumed.epoch == 1
        require_same(batches_of(resumed), epochs[1])


def test_a_state_between_epochs_begins_the_next(small_data):
    loader, other = open_loader(small_data), open_loader(small_data)
    list(loader)
    other.load_state_dict(sent(loader.state_dict()))
    assert (other.epoch, positions_of(other)) == (1, list(range(56, 104)))


@pytest.mark.parametrize(("before", "after"), [(1, 2), (4, 1), (2, 4)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_on_another_number_of_ranks_it_goes_on_with_the_next_image(
    small_data, before, after, drop_last
):
    settings = {"batch_size": 2, "global_batch_size": 8, "drop_last": drop_last}
    whole = open_loader(small_data, **settings)
    list(whole)
    wanted = positions_of(whole)  # of epoch 1
    found, states = [], []
    for rank in range(before):
        loader = open_loader(small_data, rank=rank, world_size=before, **settings)
        list(loader)
        for number, _ in enumerate(loader, 1):
            found += loader.positions.tolist()
            if number == 2 * loader.accumulation:
                break
        states.append(loader.state_dict())
    assert len({json.dumps(state) for state in states}) == 1  # any rank's will do
    for rank in range(after):
        loader = open_loader(small_data, rank=rank, world_size=after, **settings)
        loader.load_state_dict(sent(states[0]))
        found += positions_of(loader)
    assert sorted(found) == sorted(wanted)


def test_numbers_of_numpy_are_those_of_python_in_a_state(small_data):
    ranks = {"rank": np.int64(0), "world_size": np.int64(2)}
    loader = open_loader(small_data, batch_size=np.int64(4), seed=np.int32(7), **ranks)
    sent(loader.state_dict())


def test_set_epoch_keeps_to_a_loaded_place_and_moves_elsewhere(small_data):
    loader = open_loader(small_data)
    state = state_after(loader, 3)
    loader.load_state_dict(state)
    loader.set_epoch(0)
    assert positions_of(loader)[0] == 24
    loader.set_epoch(0)
    assert positions_of(loader)[0] == 0
    loader.set_epoch(5)
    assert (loader.epoch, positions_of(loader)[0]) == (5, 256)
    next(iter(loader))
    loader.set_epoch(6)  # of a `for` that was left
    assert (loader.epoch, positions_of(loader)[0]) == (6, 304)
    for wrong in (-1, 1.5, None):
        with pytest.raises(ValueError, match="epoch=.* must lie in"):
            loader.set_epoch(wrong)


def test_loading_ends_the_for_that_runs(small_data):
    loader = open_loader(small_data)
    iterator = iter(loader)
    next(iterator)
    loader.load_state_dict(loader.state_dict())
    with pytest.raises(RuntimeError, match="moved by set_epoch or load_state_dict"):
        next(iterator)
    assert positions_of(loader)[0] == 8


OTHER = [
    ({"seed": 1}, "seed: 1 in the state, 0 here"),
    ({"batch_size": 4}, "data.global_batch_size: 4 in the state, 8 here"),
    ({"image_size": 24}, "data.image_size: 24 in the state, 32 here"),
    ({"augment": "trivial"}, "data.augment: trivial in the state, none here"),
    ({"sampling": "balanced"}, "data.sampling: balanced in the state, each here"),
    ({"area": (0.5, 1.0)}, r"data.area: \[0.5, 1.0\] in the state, \[0.08, 1.0\] here"),
    ({"drop_last": True}, "drop_last: True in the state, False here"),
    ({"split": "val"}, r"\(split: val in the state, train here\)"),
]


@pytest.mark.parametrize(("settings", "said"), OTHER)
def test_a_state_of_another_loader_is_refused_with_both_values(small_data, settings, said):
    state = state_after(open_loader(small_data, **{"split": "train", **settings}), 2)
    loader = open_loader(small_data)
    with pytest.raises(ValueError, match=f"another loader.*{said}.*set these back, or begin anew"):
        loader.load_state_dict(state)
    assert positions_of(loader)[0] == 0  # as it was


def test_a_state_of_another_data_set_is_refused_with_both_hashes(small_data, tmp_path):
    root = copy_data(small_data, tmp_path / "data")
    gone = open_manifest(small_data, "train").path(7).relative_to(small_data)
    (root / gone).unlink()
    other = open_loader(root)
    hashes = [open_manifest(one, "train").digest[:16] for one in (root, small_data)]
    said = f"data hash: {hashes[0]} in the state, {hashes[1]} here"
    with pytest.raises(ValueError, match=said):
        open_loader(small_data).load_state_dict(other.state_dict())


def test_what_has_no_effect_may_differ(small_data):
    state = state_after(open_loader(small_data, augment_ops=5, val_size=24, threads=2), 2)
    loader = open_loader(small_data, channels_last=False, output="float16", erase_area=(0.1, 0.2))
    loader.load_state_dict(state)
    assert positions_of(loader)[0] == 16


@pytest.mark.parametrize("state", [None, [], {}, {"epoch": 3, "_snapshot": 1}, b"state", "state"])
def test_what_no_loader_has_made_is_refused(small_data, state):
    with pytest.raises(ValueError, match="the state is .*of no pipeline.Loader; load what"):
        open_loader(small_data).load_state_dict(state)


DAMAGE = [
    ("epoch", -1), ("epoch", "0"), ("epoch", True), ("batch", 99), ("batch", None),
    ("accumulation", 0), ("position", 17), ("position", 2**70), ("stream", None),
    ("excluded", 3), ("excluded", [[50, 0]]), ("excluded", [[1]]), ("excluded", [["1", 0]]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), DAMAGE)
def test_a_damaged_state_is_refused(small_data, name, value):
    loader = open_loader(small_data)
    good = state_after(loader, 2)
    for bad in ({**good, name: value}, {key: good[key] for key in good if key != name}):
        with pytest.raises(ValueError, match="damaged: its .*; load another one, or begin anew"):
            loader.load_state_dict(bad)
    assert loader.state_dict() == good


def test_a_state_of_another_version_is_refused(small_data):
    loader = open_loader(small_data)
    with pytest.raises(ValueError, match="version is 9 and this program's 1"):
        loader.load_state_dict({**loader.state_dict(), "version": 9})


def test_within_a_step_only_as_many_batches_a_step_go_on(small_data):
    loader = open_loader(small_data, batch_size=2, global_batch_size=8)
    state = state_after(loader, 5)
    again = open_loader(small_data, batch_size=2, global_batch_size=8)
    again.load_state_dict(state)
    assert positions_of(again)[:2] == [10, 11]
    said = "after batch 1 of the 4 of a step on 1 rank, and this loader has 2 .* on 1 rank"
    with pytest.raises(ValueError, match=said):
        open_loader(small_data, batch_size=4, global_batch_size=8).load_state_dict(state)
    # As many batches a step on more ranks, of which each has other images.
    more = open_loader(small_data, batch_size=1, global_batch_size=8, rank=0, world_size=2)
    with pytest.raises(ValueError, match="of a step on 1 rank, and this .* 4 .* on 2 ranks"):
        more.load_state_dict(state)


def test_within_a_validation_only_as_many_ranks_go_on(small_data):
    loader = open_loader(small_data, "val", rank=1, world_size=2)
    state = state_after(loader, 1)
    again = open_loader(small_data, "val", rank=1, world_size=2)
    again.load_state_dict(sent(state))
    assert [positions_of(again), positions_of(again)[:2]] == [list(range(24, 30)), [16, 17]]
    alone = open_loader(small_data, "val")
    with pytest.raises(ValueError, match="within a validation by 2 ranks.* those of 1;"):
        alone.load_state_dict(state)
    alone.load_state_dict(sent(again.state_dict()))  # between validations
    assert (alone.epoch, positions_of(alone)) == (2, list(range(30)))
    first = open_loader(small_data, "val", rank=0, world_size=2)
    first.load_state_dict(sent(again.state_dict()))
    assert (first.epoch, positions_of(first)) == (2, list(range(16)))
    with pytest.raises(ValueError, match="position 24, and batch 1 .* at 8: it is another rank's"):
        first.load_state_dict(state)


def test_between_validations_a_state_fits_whatever_a_rank_has_in_a_batch(small_data):
    two = open_loader(small_data, "val", batch_size=None, global_batch_size=8, rank=1, world_size=2)
    list(two)
    alone = open_loader(small_data, "val", batch_size=None, global_batch_size=8)
    alone.load_state_dict(sent(two.state_dict()))
    assert (alone.epoch, positions_of(alone)) == (1, list(range(30)))
    with pytest.raises(ValueError, match="batch_size: 4 in the state, 8 here"):
        alone.load_state_dict(state_after(two, 1))


def test_a_rank_with_a_batch_less_takes_no_state_from_within_anothers_validation(small_data):
    # Four batches: one on rank 0 of 3, two on rank 2.
    ranks = [open_loader(small_data, "val", rank=rank, world_size=3) for rank in (0, 2)]
    assert [len(one) for one in ranks] == [1, 2]
    with pytest.raises(ValueError, match="it is another rank's; load this rank's own"):
        ranks[0].load_state_dict(state_after(ranks[1], 2))


BAD_POSITIONS = (3, 22)
"""Where in the first epoch of seed 0 the bad training images stand."""
BAD_VAL = (13, 29)


@pytest.fixture(scope="module")
def spoilt(small_data, tmp_path_factory):
    """A data set with two training images and two validation images that break off."""
    root = copy_data(small_data, tmp_path_factory.mktemp("spoilt") / "data")
    train_set, val_set = open_manifest(root, "train"), open_manifest(root, "val")
    order = epoch_permutation(0, 0, len(train_set))
    images = [int(order[position]) for position in BAD_POSITIONS]
    for path in [*map(train_set.path, images), *map(val_set.path, BAD_VAL)]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    shutil.rmtree(root / ".trainyard")
    return root, images


def test_a_bad_file_is_named_with_what_to_do(spoilt):
    loader = open_loader(spoilt[0])
    path = open_manifest(spoilt[0], "train").path(spoilt[1][0])
    with pytest.raises(BadImage, match=f"{path.name} cannot be used.*bad_images='exclude'"):
        list(loader)
    with pytest.raises(BadImage, match="good copy"):  # the next epoch begins with the other images
        list(loader)


def test_without_bad_files_the_stream_is_the_same_on_any_number_of_ranks(spoilt, caplog):
    root, images = spoilt
    settings = {"bad_images": "exclude", "batch_size": 4, "global_batch_size": 8}
    alone = open_loader(root, **settings)
    with caplog.at_level(logging.WARNING):
        whole = [batches_of(alone), batches_of(alone)]
    assert caplog.text.count("train goes on without it") == 2
    rows = alone.state_dict()["excluded"]
    assert sorted(row[0] for row in rows) == sorted(images)
    for epoch in range(2):
        parts = []
        for rank in range(2):
            loader = open_loader(root, rank=rank, world_size=2, **settings)
            loader.set_epoch(epoch)
            parts.append(batches_of(loader))
        joined = [one for pair in zip(*parts, strict=True) for one in pair]
        require_same(joined, whole[epoch])
    # What a state holds is left out without being tried.
    resumed = open_loader(root, **settings)
    resumed.load_state_dict(sent(alone.state_dict()))
    caplog.clear()
    list(resumed)
    assert "goes on without it" not in caplog.text
    assert resumed.state_dict()["excluded"] == rows


def test_an_excluded_validation_image_has_a_label_that_nothing_equals(spoilt):
    loader = open_loader(spoilt[0], "val", bad_images="exclude")
    labels = torch.cat([own for _, own in loader]).tolist()
    assert [place for place, label in enumerate(labels) if label == -2] == list(BAD_VAL)
    again = open_loader(spoilt[0], "val", bad_images="exclude")
    again.load_state_dict(sent(loader.state_dict()))
    assert torch.cat([own for _, own in again]).tolist() == labels


def test_too_many_bad_files_end_it(spoilt):
    for split in ("train", "val"):
        loader = open_loader(spoilt[0], split, bad_images="exclude", max_excluded=1)
        with pytest.raises(ValueError, match="2 images are excluded and data.max_excluded=1"):
            list(loader)


def test_a_list_of_excluded_images_is_left_out_from_the_start(spoilt, tmp_path):
    root, images = spoilt
    path = tmp_path / "bad.json"
    splits = {"train": images, "val": list(BAD_VAL)}
    content = {
        split: {"images": bad, "data_hash": open_manifest(root, split).digest}
        for split, bad in splits.items()
    }
    path.write_text(json.dumps({"version": 1, "splits": content}))
    loader = open_loader(root, exclude=path)
    assert len(positions_of(loader)) == 56
    assert Exclusions(loader.state_dict()["excluded"]).holds(images[0], 0)
    assert len(positions_of(open_loader(root, "val", exclude=path))) == 30
    with pytest.raises(ValueError, match="2 images are excluded and data.max_excluded=1"):
        open_loader(root, exclude=path, max_excluded=1)
    full = open_loader(root, exclude=path, max_excluded=2)
    state, as_it_was = full.state_dict(), full.state_dict()
    state["excluded"].append([max(set(range(50)) - set(images)), 0])  # of another rank
    with pytest.raises(ValueError, match="3 images are excluded and data.max_excluded=2"):
        full.load_state_dict(state)
    assert full.state_dict() == as_it_was
    other = copy.deepcopy(content)
    other["train"]["data_hash"] = "0" * 64
    path.write_text(json.dumps({"version": 1, "splits": other}))
    with pytest.raises(ValueError, match="was made for other data"):
        open_loader(root, exclude=path)
