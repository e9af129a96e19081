"""The files in configs/: each says how to run it, and comes out as the recipe that it names."""

import re
import shlex
from pathlib import Path

import pytest
from jobs import REPOSITORY

from pipeline.config import Config, ConfigError
from pipeline.config.reading import CONFIGS, load_config, read_yaml
from pipeline.train.schedule import (
    ErrorWarmup,
    History,
    LinearWarmup,
    PlateauDrops,
    make_schedule,
    run_length,
)

FILES = sorted(CONFIGS.rglob("*.yaml"))
RUNS = [path for path in FILES if path.name != "common.yaml"]
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


@pytest.mark.parametrize("path", RUNS, ids=ids)
def test_each_says_how_to_run_it_and_what_was_reached(path):
    text = "\n".join(header(path))
    told = [load(*arguments) for arguments in commands(path)]
    assert told, "no command"
    assert all(config == load(f"--config={path.relative_to(REPOSITORY)}") for config in told)
    reached = re.search(r"^Reached: (.+)", text, flags=re.MULTILINE)
    assert reached is not None, "nothing on what was reached"


@pytest.mark.parametrize("path", [path for path in FILES if path not in RUNS], ids=ids)
def test_a_common_recipe_says_how_those_that_build_on_it_are_run(path):
    one = next(other for other in path.parent.glob("*.yaml") if other != path)
    for arguments in commands(path):
        load(*(str(one) if argument == "FILE" else argument for argument in arguments))
    assert commands(path), "no command"


def test_there_is_one_configuration_for_each_row_of_the_papers_tables():
    for folder, rows in (("imagenet", IMAGENET_ROWS), ("cifar10", CIFAR_ROWS)):
        names = {path.stem for path in (CONFIGS / "paper" / folder).iterdir()}
        assert names == {*rows, "common"}


@pytest.mark.parametrize("name", IMAGENET_ROWS)
def test_the_imagenet_recipe_is_the_papers(name):
    config = paper("imagenet", name)
    data, model, optim = config.data, config.model, config.optim
    assert (model.depth, model.residual, model.shortcut) == IMAGENET_ROWS[name]
    assert (model.family, model.variant, model.zero_init_last_norm) == ("imagenet", "v1", False)
    assert (data.dataset, data.global_batch_size, data.image_size) == ("imagenet-1k", 256, 224)
    assert (data.train_crop, data.short_side, data.flip) == ("scale_jitter", (256, 480), True)
    assert (data.mean, data.color_std) == ("pixel", 0.1)
    assert (optim.momentum, optim.weight_decay, optim.label_smoothing) == (0.9, 1e-4, 0.0)
    assert optim.decay_norm_and_bias

    schedule = make_schedule(config, IMAGENET)
    assert isinstance(schedule.drops, PlateauDrops)
    assert run_length(config.schedule, IMAGENET, 256) == 600_000
    assert schedule.lr(0) == pytest.approx(0.1)
    plateau = History((0.5,) * 6)
    assert schedule.lr(10 * IMAGENET, plateau) == pytest.approx(0.01)
    assert config.run.name == name


@pytest.mark.parametrize("name", CIFAR_ROWS)
def test_the_cifar_recipe_is_the_papers(name):
    config = paper("cifar10", name)
    data, model, optim = config.data, config.model, config.optim
    assert (model.depth, model.residual, model.shortcut) == CIFAR_ROWS[name]
    assert (model.family, model.zero_init_last_norm) == ("cifar", False)
    assert (data.dataset, data.held_out, data.global_batch_size) == ("cifar-10", 5000, 128)
    assert (data.train_crop, data.padding, data.flip) == ("padded", 4, True)
    assert (data.mean, data.color_std, data.image_size) == ("pixel", None, 32)
    assert (optim.momentum, optim.weight_decay, optim.label_smoothing) == (0.9, 1e-4, 0.0)
    assert optim.decay_norm_and_bias

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


# `base: FILE`.


@pytest.fixture
def write(tmp_path):
    """Writes YAML files below one folder and returns the path of the first."""

    def write_all(**texts: str) -> Path:
        for name, text in texts.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return tmp_path / f"{next(iter(texts)).replace('__', '/')}.yaml"

    return write_all


def test_a_file_sets_one_setting_at_a_time_on_top_of_its_base(write):
    path = write(
        a="base: below/b.yaml\nmodel: {depth: 34}\ndata:\nresume: none\n",
        below__b="base: ../c.yaml\nmodel: {variant: v1}\nschedule: {epochs: 7}\n",
        c="model: {depth: 18, compile: true}\nschedule: {epochs: 6, warmup_epochs: 1}\n",
    )
    assert read_yaml(path) == {
        "model": {"depth": 34, "variant": "v1", "compile": True},
        "schedule": {"epochs": 7, "warmup_epochs": 1},
        "resume": "none",
    }
    config = load(f"--config={path}", "--schedule.epochs=8")
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (8, 1)
    assert config.run.name == "a"


def test_null_on_top_of_a_base_is_a_value(write):
    path = write(a="base: b.yaml\nschedule: {epochs: null, steps: 9}", b="schedule: {epochs: 5}")
    assert read_yaml(path) == {"schedule": {"epochs": None, "steps": 9}}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            {"a": "base: none.yaml"},
            r"a\.yaml: base none\.yaml cannot be read \(No such file.*\); there are: configs/",
        ),
        ({"a": "base: a.yaml"}, r"a\.yaml builds on itself: \S+a\.yaml -> \S+a\.yaml; take base"),
        (
            {"a": "base: b.yaml", "b": "base: c.yaml", "c": "base: ../HERE/b.yaml"},
            r"b\.yaml builds on itself: \S+a\.yaml -> \S+b\.yaml -> \S+c\.yaml -> \S+b\.yaml; take",
        ),
        ({"a": "base: [b.yaml]"}, r"a\.yaml: base=\['b\.yaml'\] must be the path of a YAML file"),
        ({"a": "base: b.yaml", "b": "data: 5"}, r"b\.yaml: data must hold settings by name, not 5"),
        (
            {"a": "base: b.yaml", "b": "model: {depht: 18}"},
            r"b\.yaml: there is no setting model\.depht; did you mean model\.depth\?",
        ),
        ({"a": "bas: b.yaml"}, r"a\.yaml: there is no setting bas; did you mean base\?"),
        ({"a": "base: b.yaml", "b": "a: ["}, r"a\.yaml: base b\.yaml is not YAML"),
    ],
)
def test_a_base_that_cannot_be_used_is_named_with_who_asks_for_it(write, tmp_path, texts, message):
    filled = {name: text.replace("HERE", tmp_path.name) for name, text in texts.items()}
    with pytest.raises(ConfigError, match=message):
        read_yaml(write(**filled))
