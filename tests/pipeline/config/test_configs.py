"""The files in configs/: each says how to run it, and comes out as the recipe that it names."""

import re
import shlex
from pathlib import Path

import pytest
from jobs import REPOSITORY

from pipeline.config import Config
from pipeline.config.reading import CONFIGS, load_config
from pipeline.train.schedule import (
    ErrorWarmup,
    History,
    LinearWarmup,
    PlateauDrops,
    make_schedule,
    run_length,
)

FILES = sorted(CONFIGS.rglob("*.yaml"))
IMAGENET, CIFAR = 1_281_167, 45_000
WARMED_UP = History(warmup_end=0)

# Name -> (depth, residual, shortcut): every row of the paper's tables 2 to 4.
IMAGENET_ROWS = {
    "plain-18": (18, False, None), "plain-34": (34, False, None), "resnet-18-a": (18, True, "A"),
    "resnet-34-a": (34, True, "A"), "resnet-34-b": (34, True, "B"), "resnet-34-c": (34, True, "C"),
    "resnet-50": (50, True, "B"), "resnet-101": (101, True, "B"), "resnet-152": (152, True, "B"),
}  # fmt: skip
# Every row of table 6 and every plain network of figure 6.
CIFAR_ROWS = {
    **{f"resnet-{depth}": (depth, True, None) for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"plain-{depth}": (depth, False, None) for depth in (20, 32, 44, 56, 110)},
}


def load(*argv: str) -> Config:
    return load_config(argv, "prog", "")


def paper(folder: str, name: str) -> Config:
    return load(f"--config={CONFIGS / 'paper' / folder / name}.yaml")


def header(path: Path) -> list[str]:
    """The comment lines that a file begins with, without their signs."""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").removeprefix(" ") for line in lines[:first]]


def commands(path: Path) -> list[list[str]]:
    """The arguments of `pipeline.train` in a file's header."""
    lines = [line for line in header(path) if line.startswith("  ") and "pipeline.train" in line]
    after = [line.partition("pipeline.train")[2].partition("        ")[0] for line in lines]
    return [shlex.split(arguments) for arguments in after]


def ids(path: Path) -> str:
    return str(path.relative_to(CONFIGS))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_each_says_how_to_run_it_and_what_was_reached(path):
    common = path.name == "common.yaml"  # run as those that build on it
    one = next(other for other in path.parent.glob("*.yaml") if not common or other != path)
    told = [[str(one) if word == "FILE" else word for word in line] for line in commands(path)]
    assert told, "no command"
    for arguments in told:
        config = load(*arguments)
        assert common or config == load(f"--config={path.relative_to(REPOSITORY)}")
    reached = re.search(r"^Reached: (.+)", "\n".join(header(path)), flags=re.MULTILINE)
    assert common or reached is not None, "nothing on what was reached"


def test_there_is_one_configuration_for_each_row_of_the_papers_tables():
    for folder, rows in (("imagenet", IMAGENET_ROWS), ("cifar10", CIFAR_ROWS)):
        names = {path.stem for path in (CONFIGS / "paper" / folder).iterdir()}
        assert names == {*rows, "common"}


def require_the_papers(config: Config, family: str, batch: int) -> None:
    """What all networks of the paper have in common."""
    data, model, optim = config.data, config.model, config.optim
    assert (model.family, model.zero_init_last_norm) == (family, False)
    assert (data.global_batch_size, data.mean, data.flip) == (batch, "pixel", True)
    assert (optim.momentum, optim.weight_decay, optim.label_smoothing) == (0.9, 1e-4, 0.0)
    assert optim.decay_norm_and_bias


@pytest.mark.parametrize("name", IMAGENET_ROWS)
def test_the_imagenet_recipe_is_the_papers(name):
    config = paper("imagenet", name)
    require_the_papers(config, "imagenet", 256)
    data, model = config.data, config.model
    assert (model.depth, model.residual, model.shortcut) == IMAGENET_ROWS[name]
    assert (model.variant, data.dataset, data.image_size) == ("v1", "imagenet-1k", 224)
    assert (data.train_crop, data.short_side, data.color_std) == ("scale_jitter", (256, 480), 0.1)

    schedule = make_schedule(config, IMAGENET)
    assert isinstance(schedule.fall, PlateauDrops)
    assert run_length(config.schedule, IMAGENET, 256) == 600_000
    assert schedule.lr(0) == pytest.approx(0.1)
    assert schedule.lr(10 * IMAGENET, History((0.5,) * 6)) == pytest.approx(0.01)
    assert config.run.name == name


@pytest.mark.parametrize("name", CIFAR_ROWS)
def test_the_cifar_recipe_is_the_papers(name):
    config = paper("cifar10", name)
    require_the_papers(config, "cifar", 128)
    data, model = config.data, config.model
    assert (model.depth, model.residual, model.shortcut) == CIFAR_ROWS[name]
    assert (data.dataset, data.held_out, data.image_size) == ("cifar-10", 5000, 32)
    assert (data.train_crop, data.padding, data.color_std) == ("padded", 4, None)

    schedule = make_schedule(config, CIFAR)
    assert run_length(config.schedule, CIFAR, 128) == 64_000
    at = {step: schedule.lr(step * 128, WARMED_UP) for step in (0, 31_999, 32_000, 47_999, 48_000)}
    assert list(at.values()) == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])
    if model.depth >= 110:
        assert schedule.warmup == ErrorWarmup(factor=0.1, until_error=0.8)
        assert schedule.lr(0) == pytest.approx(0.01)
    else:
        assert schedule.warmup == LinearWarmup(0, 0.1)
    assert config.run.name == name


@pytest.mark.parametrize(
    ("name", "depth", "batch", "peak"),
    [
        ("resnet50", 50, 2048, 0.8), ("resnet50_64gpu", 50, 8192, 3.2),
        ("resnet152", 152, 1024, 0.4), ("resnet152_64gpu", 152, 8192, 3.2),
    ],
)  # fmt: skip
def test_the_recipe_of_90_epochs_warms_up_from_the_rate_of_256_images(name, depth, batch, peak):
    config = load(f"--config=configs/{name}.yaml")
    assert (config.model.depth, config.model.variant) == (depth, "v1.5")
    assert config.model.zero_init_last_norm and not config.optim.decay_norm_and_bias
    assert config.data.global_batch_size == batch
    schedule = make_schedule(config, IMAGENET)
    steps = run_length(config.schedule, IMAGENET, batch)
    assert (steps - 1) * batch < 90 * IMAGENET <= steps * batch
    assert schedule.lr(0) == pytest.approx(0.1)
    for epoch, lr in ((5, peak), (30, peak / 10), (60, peak / 100), (80, peak / 1000)):
        assert schedule.lr(epoch * IMAGENET) == pytest.approx(lr)
        assert schedule.lr(epoch * IMAGENET - 1) == pytest.approx(
            lr if epoch == 5 else 10 * lr, rel=1e-5
        )
