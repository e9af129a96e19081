"""`Loader` gives what a training sees, epoch by epoch, on any number of ranks and any container."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import pickle
import threading
from contextlib import closing

import cifar_archives
import jobs
import pytest
import torch
import torch.distributed as dist
from container_writers import WRITERS, draw_images, write_folders
from loader_batches import batches_of, open_loader, positions_of, require_same
from one_process import config_of, train_here
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipeline.data.dali import DecodeSettings
from pipeline.data.index.manifest import open_manifest
from pipeline.ranks.world import World
from pipeline.train.feed import Feed
from pipeline.train.loaders import Loaders

RECIPES = {
    "plain": {},
    "jitter": {"train_crop": "scale_jitter", "short_side": (36, 48), "color_std": 0.1},
    "recipe": {
        "augment": "rand", "augment_std": 1.5, "erase": 0.5, "repeats": 3, "sampling": "balanced",
        "image_sizes": {0: 24, 1: 32},
    },
}  # fmt: skip


@pytest.mark.parametrize("settings", RECIPES.values(), ids=RECIPES)
def test_it_gives_the_batches_of_a_training_bit_for_bit(
    small_data, tmp_path, monkeypatch, settings
):
    seen, get = [], Feed.next

    def recorded(feed, *arguments, **named):
        batch, decision = get(feed, *arguments, **named)
        seen.append((batch.positions, batch.labels, batch.images.clone()))
        return batch, decision

    monkeypatch.setattr(Feed, "next", recorded)
    options = [f"--data.{name}={value}".replace("'", "") for name, value in settings.items()]
    options = [option.replace("(", "[").replace(")", "]") for option in options]
    options += ["--data.local_batch_size=4", "--schedule.epochs=2", "--run.seed=3"]
    train_here(small_data, tmp_path, "--data.area=[0.2,1.0]", *options)
    loader = open_loader(
        small_data, batch_size=4, global_batch_size=8, seed=3, area=(0.2, 1.0), **settings
    )
    assert loader.accumulation == 2
    epochs = [batches_of(loader), batches_of(loader)]
    assert [len(epoch) for epoch in epochs] == [14, 12]  # 7 and 6 steps of 8 of 50 images
    assert len(seen) == 26
    by_size = itertools.groupby(zip(seen, sum(epochs, []), strict=True), lambda p: p[0][2].shape)
    for _, pairs in by_size:
        theirs, ours = zip(*pairs, strict=True)
        require_same(ours, theirs)


@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_the_batches_of_one(small_data, drop_last):
    alone = open_loader(small_data, global_batch_size=8, drop_last=drop_last)
    ranks = [
        open_loader(
            small_data, batch_size=2, global_batch_size=8, rank=rank, world_size=2,
            drop_last=drop_last,
        )
        for rank in range(2)
    ]  # fmt: skip
    for _ in range(2):
        whole, parts = batches_of(alone), [batches_of(rank) for rank in ranks]
        assert len(parts[0]) == len(parts[1]) == 2 * len(whole)
        joined = []
        for step in range(len(whole)):
            for part in parts:
                joined += part[2 * step : 2 * step + 2]
        require_same(joined, whole)


def test_one_made_before_the_ranks_met_is_refused(small_data):
    early, told = open_loader(small_data), open_loader(small_data, rank=0, world_size=1)
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        said = (
            "made as rank 0 of 1, and torch.distributed, .* as rank 1 of 2; make the loader after"
        )
        with pytest.raises(RuntimeError, match=said):
            next(iter(early))
        next(iter(told))
        assert next(iter(open_loader(small_data)))[0].shape[0] == 8
    finally:
        dist.destroy_process_group()


def test_epochs_follow_on_and_differ_by_a_batch(small_data):
    loader = open_loader(small_data, batch_size=16)
    found, lengths = [], []
    for epoch in range(4):
        assert loader.epoch == epoch
        lengths.append(len(loader))
        one = positions_of(loader)
        assert len(one) == 16 * lengths[-1]
        found += one
    assert lengths == [4, 3, 3, 3]  # of 200 images
    assert found == list(range(13 * 16))
    assert loader.position == 13 * 16


def test_drop_last_begins_each_epoch_with_its_own_first_image(small_data):
    loader = open_loader(small_data, batch_size=16, drop_last=True)
    for epoch in range(3):
        assert len(loader) == 3
        assert positions_of(loader) == list(range(50 * epoch, 50 * epoch + 48))


def test_a_growing_size_is_that_of_the_epoch_where_epochs_begin_anew(small_data):
    sizes = {0: 16, 1: 24, 2: 32}
    for world in (1, 2):
        loader = open_loader(
            small_data, batch_size=None, global_batch_size=16, drop_last=True, image_sizes=sizes,
            rank=world - 1, world_size=world,
        )  # fmt: skip
        for side in sizes.values():
            assert {images.shape[-1] for images, _ in loader} == {side}


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_val_has_each_image_once_over_the_ranks(small_data, world):
    labels = open_manifest(small_data, "val").labels
    found, counts = {}, []
    for rank in range(world):
        loader = open_loader(small_data, "val", rank=rank, world_size=world)
        batches = batches_of(loader)
        counts.append(len(batches))
        assert len(loader) == len(batches)
        for positions, own, images in batches:
            assert len(positions) == len(own) == len(images)
            assert not found.keys() & set(positions.tolist())
            found |= dict(zip(positions.tolist(), own.tolist(), strict=True))
    assert found == dict(enumerate(labels.tolist()))
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == 4  # of 8, 8, 8 and 6; of seven ranks three have none


def test_val_has_the_views_of_a_trainings_validation(small_data, tmp_path):
    config = config_of(small_data, tmp_path)
    train_set, val_set = open_manifest(small_data, "train"), open_manifest(small_data, "val")
    decode = DecodeSettings("cpu", torch.device("cpu"), 1)
    with closing(Loaders(config, World(), decode, train_set, val_set, 7)) as loaders:
        wanted = [(b.positions, b.labels, b.images) for b in loaders.val()]
    real = [slice(None)] * 3 + [slice(6)]  # without the last batch's padding
    wanted = [tuple(part[own] for part in one) for own, one in zip(real, wanted, strict=True)]
    require_same(batches_of(open_loader(small_data, "val")), wanted)


def test_every_pass_over_val_is_the_same(small_data):
    loader = open_loader(small_data, "val")
    first = batches_of(loader)
    assert [len(one[0]) for one in first] == [8, 8, 8, 6]
    next(iter(loader))
    require_same(batches_of(loader), first)


def test_a_for_that_is_left_has_had_its_epoch(small_data):
    loader = open_loader(small_data)
    for _ in loader:
        break
    assert (loader.epoch, loader.position) == (0, 8)
    iter(loader)  # takes nothing
    with pytest.raises(KeyError):
        for _ in loader:
            raise KeyError
    assert (loader.epoch, loader.position) == (1, 64)
    assert positions_of(loader) == list(range(104, 152))  # epoch 2


def test_one_for_at_a_time(small_data):
    loader = open_loader(small_data)
    first = iter(loader)
    next(first)
    second = iter(loader)
    next(second)
    with pytest.raises(RuntimeError, match="begun another for.*make a second Loader"):
        next(first)
    next(second)
    with pytest.raises(RuntimeError, match="one at a time"):
        list(zip(loader, loader, strict=True))
    ended = iter(loader)
    list(ended)
    assert list(ended) == []


def test_two_loaders_run_at_once(small_data):
    train, other, val = (open_loader(small_data, split) for split in ("train", "train", "val"))
    for (images, _), (same, _), _ in zip(train, other, val, strict=False):
        assert torch.equal(images, same)


@pytest.mark.parametrize("writer", [write_folders, *WRITERS], ids=lambda one: one.__name__)
def test_any_container_gives_the_same(tmp_path, writer):
    images = draw_images(24)
    by_class = sorted(images, key=lambda one: (one[0], one[1]))
    root = tmp_path / "data"
    for split in ("train", "val"):
        writer(root / split, images)
    with open_loader(root, "val", image_size=16, val_resize=16) as loader:
        names = [loader.classes[label] for _, labels in loader for label in labels]
    assert sorted(names) == sorted(one[0] for one in by_class)
    with open_loader(root, image_size=16, val_resize=16, seed=5) as loader:
        assert {tuple(images.shape) for images, _ in loader} == {(8, 3, 16, 16)}


def test_cifar_10(tmp_path):
    cifar_archives.write(tmp_path)
    settings = {"dataset": "cifar-10", "train_crop": "padded", "mean": "pixel", "held_out": 20}
    with (
        open_loader(tmp_path, **settings) as train,
        open_loader(tmp_path, "val", **settings) as val,
    ):
        (images, labels), (views, _) = next(iter(train)), next(iter(val))
        assert images.shape == views.shape == (8, 3, 32, 32)
        assert labels.dtype == torch.int64
        assert abs(float(views.mean())) < 0.5  # normalised
        assert val.num_images == 20


def test_layout_and_type_are_as_asked_for(small_data):
    for channels_last, contiguous in (
        (True, torch.channels_last),
        (False, torch.contiguous_format),
    ):
        images, _ = next(iter(open_loader(small_data, channels_last=channels_last)))
        assert images.is_contiguous(memory_format=contiguous)
        assert images.dtype == torch.float32
    half, _ = next(iter(open_loader(small_data, output="float16")))
    assert half.dtype == torch.float16
    byte, _ = next(iter(open_loader(small_data, output="uint8")))
    assert byte.dtype == torch.float32
    assert torch.allclose(byte, images, atol=0.02)


def test_val_has_the_labels_of_train_or_of_given_classes(small_data, tmp_path):
    (tmp_path / "val").symlink_to(small_data / "val")
    with pytest.raises(ValueError, match="has no folder train"):
        open_loader(tmp_path, "val")
    with open_loader(small_data) as train:
        names = train.classes
    with open_loader(tmp_path, "val", classes=names[::-1]) as val:
        assert val.classes == names[::-1]


def loader_threads() -> set[str]:
    names = {thread.name.rpartition("_")[0] for thread in threading.enumerate()}
    return names & {"plan", "read", "upload"}


def test_closing_or_dropping_it_ends_its_threads(small_data):
    gc.collect()
    assert loader_threads() == set()
    with open_loader(small_data) as loader:
        next(iter(loader))
        assert loader_threads() == {"plan", "read"}
    assert loader_threads() == set()
    with pytest.raises(RuntimeError, match="this loader is closed; make a new one"):
        next(iter(loader))
    loader.close()
    dropped = open_loader(small_data)
    for _ in dropped:
        break
    gc.disable()  # by counting references alone, so that no other thread has to do it
    try:
        del dropped
        assert loader_threads() == set()
    finally:
        gc.enable()


def test_a_program_may_end_in_the_middle_of_a_for(small_data):
    program = (
        "from loader_batches import open_loader\n"
        f"loader = open_loader({str(small_data)!r})\n"
        "images = next(iter(loader))\n"
        "iterator = iter(loader); next(iterator)\n"
        "print('told')\n"
    )
    path = f"{jobs.REPOSITORY}:{jobs.REPOSITORY / 'tests'}"
    ended = jobs.run(["-c", program], PYTHONPATH=path)
    assert (ended.codes, ended.text) == ([0], "told\n")


def _in_a_fork(loader, root, found) -> None:
    try:
        next(iter(loader))
    except RuntimeError as error:
        found.put(str(error))
    with open_loader(root) as own:
        found.put(positions_of(own))
    del loader


def test_a_forked_process_makes_its_own(small_data):
    loader = open_loader(small_data)
    iterator = iter(loader)
    next(iterator)
    forking = multiprocessing.get_context("fork")
    found = forking.SimpleQueue()
    child = forking.Process(target=_in_a_fork, args=(loader, small_data, found))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert "make a Loader in each process" in found.get()
    assert found.get() == list(range(56))
    next(iterator)  # here it goes on


def test_it_is_not_sent_to_another_process(small_data):
    with pytest.raises(TypeError, match="make one in each process"):
        pickle.dumps(open_loader(small_data))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"split": "test"}, "split='test' must be one of train, val"),
        ({"agument": "rand"}, "no setting agument; did you mean augment?"),
        ({"batchsize": 8}, "no setting batchsize; did you mean batch_size?"),
        ({"qqqq": 8}, "no setting qqqq; python -m pipeline.train --help lists the settings"),
        ({"augment": "radn"}, "data.augment=radn must be one of none, trivial, rand"),
        ({"area": (0.0, 2.0)}, r"data.area=\[0.0,2.0\] must satisfy"),
        ({"mixup": 0.2}, "mixup=0.2 mixes images and labels.* leave mixup out"),
        ({"batch_size": 0}, "^batch_size=0 must be at least 1"),
        ({"batch_size": 2.5}, "^batch_size=2.5 must be a whole number"),
        ({"seed": -1}, "^seed=-1 must lie in"),
        ({"rank": 1}, "rank=1 and world_size=None go together"),
        ({"rank": 2, "world_size": 2}, r"rank=2 must lie in \[0, 2\)"),
        ({"rank": "0", "world_size": 2}, "rank='0' and world_size=2 must be whole numbers"),
        ({"rank": 0.5, "world_size": 2}, "rank=0.5 and world_size=2 must be whole numbers"),
        ({"shuffle": True}, "no setting shuffle, as train is in an order by seed.*leave it out"),
        ({"num_workers": 4}, "no setting num_workers, as DALI's threads are set by threads"),
        (
            {"global_batch_size": 9, "rank": 0, "world_size": 2},
            "data.global_batch_size=9 is not divisible by 2 ranks",
        ),
        ({"split": "val", "drop_last": True}, "drop_last=True would leave images of val out"),
        ({"batch_size": 64, "drop_last": True}, "drop_last=True leaves nothing of 50 images"),
        ({"device": "tpu"}, "device='tpu' must be auto, cpu, cuda or a torch.device"),
        ({"device": torch.device("meta")}, "device=meta must be a CPU or a GPU"),
        ({"dataset": "imagenet-1k"}, "is not the whole of imagenet-1k"),
        ({"mean": "channel"}, "data.mean=channel needs the statistics"),
    ],
)
def test_what_cannot_be_is_refused_as_a_configuration_refuses_it(small_data, settings, said):
    with pytest.raises(ValueError, match=said):
        open_loader(small_data, **{"split": "train", **settings})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(small_data):
    for device in ("cuda", torch.device("cuda", 1)):
        with pytest.raises(ValueError, match="^device=cuda.*set device=auto"):
            open_loader(small_data, device=device)
    with pytest.raises(ValueError, match="data.decode=gpu needs an NVIDIA GPU"):
        open_loader(small_data, decode="gpu")
    assert open_loader(small_data, device="auto").device == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("decode", ["cpu", "gpu"])
def test_on_a_gpu_batches_are_near_those_of_the_cpu(small_data, decode):
    on_gpu = open_loader(small_data, device="cuda", decode=decode, augment="trivial")
    on_cpu = open_loader(small_data, augment="trivial")
    for (images, labels), (wanted, names) in zip(on_gpu, on_cpu, strict=True):
        assert images.device.type == labels.device.type == "cuda"
        assert torch.equal(labels.cpu(), names)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert float((images.cpu() - wanted).abs().mean()) < 0.1
    state = on_gpu.state_dict()
    on_cpu.load_state_dict(state)  # where it is decoded is no part of the stream
