"""The configuration: what is accepted, what each mistake is answered, and how fast it may be."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jobs import REPOSITORY, environment

from pipeline.config import (
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    setting_names,
)
from pipeline.config.reading import CONFIGS, DEFAULT_CONFIG, load_config, read_yaml
from pipeline.config.setting import setting, shown

PLAIN = {"residual": False, "zero_init_last_norm": False}
CIFAR = {"dataset": "cifar-10", "train_crop": "padded", "image_size": 32}


def load(*argv: str) -> Config:
    return load_config(argv, "prog", "what it does")


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


# What is answered before anything heavy is loaded.

ANSWERED = [
    ("pipeline.train", ["--help"], "0"),
    ("pipeline.train", ["--model.depth=19"], "model.depth=19 does not exist"),
    ("pipeline.train", ["--data.global_batch_size=255"], "=255 is not divisible by 2 ranks; the"),
    ("pipeline.train", ["--resume=latest"], "--resume is neither auto nor none, and"),
    ("pipeline.train", ["configs/demo.yaml"], "did you mean --config configs/demo.yaml?"),
    (
        "pipeline.train",
        ["--data.area=0.3"],
        "0.3 must be a list of 2 numbers in brackets, such as",
    ),
    ("pipeline.evaluate", ["--help"], "0"),
    ("pipeline.evaluate", ["--data.root=x"], "--checkpoint is missing"),
    ("pipeline.evaluate", ["--checkpoint=none.pt"], "--checkpoint none.pt does not"),
    ("pipeline.evaluate", ["--checkpoint=tests"], "--checkpoint tests is a folder"),
    ("pipeline.evaluate", ["--checkpoint=" + 300 * "x"], "; give the path of a .pt file"),
    ("pipeline.evaluate", ["--model.depth=50"], "--model.depth comes from the check"),
    ("pipeline.prepare", ["demo", "--trian=3"], "--trian; did you mean --train"),
]
ANSWERS = """
import contextlib, importlib, io, json, sys
for module, argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            importlib.import_module(module + ".__main__").main(argv)
        except (ValueError, SystemExit) as error:
            answer = str(error)
    heavy = [name for name in ("torch", "nvidia", "horovod") if name in sys.modules]
    print(json.dumps([answer, heavy]))
"""


@pytest.fixture(scope="module")
def answers() -> list[tuple[str, list[str]]]:
    """What one process of two ranks answers to each of `ANSWERED`, and what it has loaded then."""
    done = subprocess.run(
        [sys.executable, "-c", ANSWERS, json.dumps([case[:2] for case in ANSWERED])],
        cwd=REPOSITORY, env=environment(HOROVOD_RANK="0", HOROVOD_SIZE="2"), text=True,
        capture_output=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("number", range(len(ANSWERED)), ids=lambda n: " ".join(ANSWERED[n][1]))
def test_help_and_wrong_settings_are_answered_before_anything_heavy_is_loaded(answers, number):
    answer, heavy = answers[number]
    assert ANSWERED[number][2] in answer
    assert heavy == []


@pytest.mark.parametrize(
    ("ranks", "nearest"),
    [("3", "the nearest that are: 255 and 258"), ("512", "nearest that is: 512")],
)
def test_a_global_batch_that_ranks_cannot_share_is_answered_with_the_nearest(
    ranks, nearest, monkeypatch
):
    from pipeline.train.__main__ import main

    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", ranks)
    with pytest.raises(ValueError, match=f"=256 is not divisible by {ranks} ranks.* {nearest}"):
        main(["--data.global_batch_size=256"])


# Names and types.


@pytest.mark.parametrize(
    ("where", "seen", "meant"),
    [
        ("model: {depht: 18}", "model.depht", "did you mean model.depth?"),
        ("data: {global_batch: 18}", "data.global_batch", "did you mean data.global_batch_size?"),
        ("optim: {lr: 18}", "optim.lr", "did you mean optim.base_lr?"),
        ("optim: {ema: 0.9}", "optim.ema", "did you mean optim.ema_decay?"),
        ("depth: 18", "depth", "did you mean model.depth?"),  # by its last part
        ("resum: none", "resum", "did you mean resume?"),
        ("--model.depht=18", "--model.depht", "did you mean --model.depth?"),
        ("--depth=18", "--depth", "did you mean --model.depth?"),
        ("--qqqq=1", "--qqqq", "--help lists the settings"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(write, where, seen, meant):
    argument = where if where.startswith("--") else f"--config={write(a=where)}"
    with pytest.raises(ConfigError, match=f": there is no setting {seen}; ") as error:
        load(argument)
    assert str(error.value).endswith(meant)


@pytest.mark.parametrize(
    ("argument", "rule"),
    [
        ("--model.depth=deep", "a whole number"),
        ("--model.depth=18.5", "a whole number"),
        ("--model.depth=null", "a whole number"),
        ("--data.flip=maybe", "true or false"),
        ("--data.area=[0.5]", "a list of 2 numbers in brackets, such as [30,60]"),
        ("--data.train_crop=center", "one of random_resized_crop, scale_jitter, padded"),
        ("--model.family=cifr", "one of imagenet, cifar; did you mean cifar?"),
        ("--model.shortcut=D", "one of A, B, C, null"),
        ("--schedule.drop_epochs=3", "a list of numbers in brackets, such as [30,60] or null"),
    ],
)
def test_a_wrong_type_or_choice_names_setting_value_and_rule(argument, rule):
    with pytest.raises(ConfigError) as error:
        load(argument)
    assert str(error.value) == f"{argument[2:]} must be {rule}"


# Values. Each part checks itself, whoever makes it.

OUT_OF_RANGE = [
    (DataConfig, name, value)
    for value, names in {
        0: "global_batch_size local_batch_size image_size prefetch_batches threads color_std",
        -1: "max_excluded padding device_padding_bytes host_padding_bytes hw_decoder_load",
        1.1: "hw_decoder_load",
        (0.5, 0.4): "area",
        (0, 0.4): "area",
        (0.5, 1.4): "area",
        (0, 70000): "preallocate",
        200: "val_resize",
    }.items()
    for name in names.split()
] + [
    (OptimConfig, "base_lr", 0), (OptimConfig, "momentum", 1), (OptimConfig, "weight_decay", -1),
    (DataConfig, "mixup", -1), (DataConfig, "cutmix", -1),
    (OptimConfig, "label_smoothing", 1), (OptimConfig, "base_lr", float("nan")),
    (ScheduleConfig, "epochs", 0), (ScheduleConfig, "epochs", 3), (ScheduleConfig, "patience", 0),
    (ScheduleConfig, "epochs", float("inf")), (ScheduleConfig, "warmup_epochs", -1),
    (ScheduleConfig, "warmup_start_factor", 0), (ScheduleConfig, "warmup_start_factor", 1.1),
    (ScheduleConfig, "warmup_until_error", 1), (ScheduleConfig, "min_improvement", -1),
    (ScheduleConfig, "max_drops", -1), (ScheduleConfig, "drop_epochs", (60, 30)),
    (ScheduleConfig, "drop_epochs", (0,)),
    (RunConfig, "name", "a/b"), (RunConfig, "name", ".."), (RunConfig, "seed", -1),
    (RunConfig, "threads", 0), (RunConfig, "checkpoint_every_steps", 0),
    (RunConfig, "checkpoint_every_sec", 0), (RunConfig, "log_every_steps", 0),
    (RunConfig, "keep_checkpoints", 0), (RunConfig, "step_timeout_sec", 0.5),
    (RunConfig, "step_timeout_sec", 1e7), (RunConfig, "expect_top1", 75),
]  # fmt: skip


@pytest.mark.parametrize(("part", "name", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_names_setting_value_and_rule(part, name, value):
    owner = part.__name__.removesuffix("Config").lower()
    with pytest.raises(ConfigError) as error:
        part(**{name: value})
    seen = repr(value) if isinstance(value, str) else shown(value)
    assert f"{owner}.{name}={seen}" in str(error.value) and " must " in str(error.value)


def test_a_rule_says_where_a_number_lies_and_whether_null_does():
    for part, name, value, rule in (
        (OptimConfig, "base_lr", 0.0, "optim.base_lr=0.0 must be greater than 0"),
        (OptimConfig, "momentum", 1.0, "optim.momentum=1.0 must lie in [0, 1)"),
        (RunConfig, "threads", 0, "run.threads=0 must be at least 1, or null"),
        (DataConfig, "color_std", math.inf, "data.color_std=inf must be finite, or null"),
        (OptimConfig, "base_lr", math.inf, "optim.base_lr=inf must be finite"),
        (
            ScheduleConfig,
            "warmup_epochs",
            90,
            "schedule.warmup_epochs=90 must be less than schedule.epochs=90.0; shorten the warm-up "
            "(0: none), or lengthen the run",
        ),
    ):
        with pytest.raises(ConfigError) as error:
            part(**{name: value})
        assert str(error.value) == rule


@pytest.mark.parametrize("limits", ["[0,1)", "0, 1", "[1, 0]", "[nan, 1]", "[a, 1]"])
def test_malformed_limits_are_refused_at_import(limits):
    with pytest.raises(ValueError, match="limits=|convert string"):
        setting(0.5, "execution", limits=limits)


@pytest.mark.parametrize(
    ("part", "settings", "message"),
    [
        (DataConfig, {"train_crop": "scale_jitter", "short_side": (200, 480)},
         r"data.short_side=\[200,480\] must satisfy data.image_size=224 <= least <= most"),
        (DataConfig, {"dataset": "cifar-10"}, "data.train_crop=random_resized_crop does not go"),
        (DataConfig, {"held_out": 5}, "data.held_out=5 is for data.dataset=cifar-10 alone"),
        (DataConfig, {**CIFAR, "held_out": 0}, "data.held_out=0 must be at least 1, or null"),
        (DataConfig, {**CIFAR, "color_std": 0.1}, "data.color_std=0.1 is not for data.dataset=ci"),
        (DataConfig, {**CIFAR, "image_size": 28}, "data.image_size=28 must be 32"),
        (DataConfig, {**CIFAR, "decode": "gpu"}, "data.decode=gpu is for JPEGs"),
        (DataConfig, {"mean": "pixel", "output": "uint8"}, "data.output=uint8 subtracts the mean"),
        (ModelConfig, {"depth": 20}, r"model.depth=20 .*; of residual networks .* 18, 34, 50, 10"),
        (ModelConfig, {"depth": 50, **PLAIN}, r"depth=50 .*; of plain networks there are 18, 34$"),
        (ModelConfig, {"family": "cifar", "depth": 21}, r"=21 .*; the nearest: 20 and 26 \(the pa"),
        (ModelConfig, {"family": "cifar", "depth": 2}, "model.depth=2 .*; the nearest: 8 "),
        (ModelConfig, {"depth": 18, "shortcut": "C", **PLAIN},
         "model.shortcut=C is for residual networks and model.residual is false; leave it null"),
        (ModelConfig, {"depth": 18, "residual": False},
         "zero_init_last_norm=true would .* set it to false"),
        (ScheduleConfig, {"steps": 3}, "schedule.epochs=90.0 or schedule.steps=3; set one of them"),
        (ScheduleConfig, {"epochs": None}, "schedule.epochs=null or schedule.steps=null; set one"),
        (ScheduleConfig, {"drop_steps": (3,)}, r"drop_epochs=\[30.0,60.0,80.0\] or in .*=\[3\];"),
        (ScheduleConfig, {"rule": "plateau", "drop_epochs": None, "drop_steps": (3,)},
         r"schedule.drop_steps=\[3\] has no effect with schedule.rule=plateau"),
        (ScheduleConfig, {"warmup_until_error": 0.8}, "_error=0.8 and .*warmup_epochs=5.0 are two"),
        (ScheduleConfig,
         {"warmup_until_error": 0.8, "warmup_epochs": 0, "warmup_start_factor": 1},
         "warmup_until_error=0.8 has no effect at schedule.warmup_start_factor=1"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(part, settings, message):
    with pytest.raises(ConfigError, match=message):
        part(**settings)


def test_the_limits_themselves_are_accepted():
    config = load(
        "--data.area=[1,1]", "--data.train_crop=scale_jitter", "--data.short_side=[224,224]",
        "--data.val_resize=224", "--optim.momentum=0", "--schedule.warmup_epochs=0",
        "--schedule.drop_epochs=[]", "--schedule.max_drops=0", "--run.checkpoint_every_sec=null",
        "--run.expect_top1=1", "--data.hw_decoder_load=1", f"--run.seed={2**63 - 1}",
        "--schedule.min_improvement=.inf",
    )  # fmt: skip
    assert config.data.short_side == (224, 224)
    assert config.schedule.drop_epochs == ()
    assert config.run.checkpoint_every_sec is None
    assert RunConfig(checkpoint_every_sec=math.inf).checkpoint_every_sec == math.inf
    assert config.schedule.min_improvement == math.inf
    for depth in (8, 20, 110, 164, 1202):  # 6n + 2
        assert ModelConfig("cifar", depth=depth).depth == depth


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.depth = 18  # type: ignore[misc]


# Where a setting comes from.


def test_the_command_line_overrides_the_yaml_which_overrides_the_defaults(write):
    path = write(a="model: {depth: 18, variant: v1}\ndata: {image_size: 64}")
    config = load("--model.depth=34", f"--config={path}", "--resume", "none")
    assert config.model.depth == 34  # both: whatever the order of the arguments
    assert config.model.variant == "v1"
    assert config.data.image_size == 64
    assert config.optim == Config().optim
    assert config.resume == "none"


def test_without_arguments_the_resnet50_on_imagenet_is_trained():
    assert DEFAULT_CONFIG == CONFIGS / "resnet50.yaml"
    assert load() == load("--config=configs/resnet50.yaml")
    assert (load().model.depth, load().data.root) == (50, "data/imagenet")


def test_numbers_in_a_yaml_may_have_an_exponent(write):
    # PyYAML reads 1e-4, which has no dot, as a string.
    path = write(a="optim: {weight_decay: 1e-4}")
    assert load(f"--config={path}").optim.weight_decay == 1e-4


@pytest.mark.parametrize("text", ["data: {}\n", "# data:\n", ""])
def test_an_empty_file_sets_nothing(write, text):
    assert load("--config", str(write(a=text))) == Config(run=RunConfig(name="a"))


def test_a_run_is_called_after_its_configuration_unless_it_is_named(write):
    assert load("--config", "configs/demo.yaml").run.name == "demo"
    assert load("--config=configs/demo.yaml", "--run.name=x").run.name == "x"
    assert load(f"--config={write(a='run: {name: y}')}").run.name == "y"


def test_the_written_yaml_reads_back_to_the_equal_configuration(write):
    config = load(
        "--run.name=123", "--data.root=a: b", "--data.color_std=0.1", "--optim.base_lr=3e-05",
        "--schedule.drop_epochs=[1.5,2]", "--data.threads=3", "--resume=none", "--run.dir=a: b #",
    )  # fmt: skip
    assert (config.run.name, config.data.root) == ("123", "a: b")
    odd = RunConfig(name="null", dir="null")  # as earlier versions took them
    for one in (config, Config(), Config(run=odd, data=DataConfig(cache_dir="null"))):
        assert load(f"--config={write(a=one.to_yaml())}") == one
    tree = yaml.safe_load(config.to_yaml())
    flat = {f"{part}.{name}" for part, own in tree.items() if isinstance(own, dict) for name in own}
    assert flat | {"resume", "init", "profile"} == set(setting_names()) == set(config.values())


# YAML files, and `base: FILE`.


def test_a_file_sets_one_setting_at_a_time_on_top_of_its_base(write):
    path = write(
        a="base: below/b.yaml\nmodel: {depth: 34}\nresume: none\n",
        below__b="base: ../c.yaml\nmodel: {variant: v1}\nschedule: {epochs: 7, steps: null}\n",
        c="model: {depth: 18, compile: true}\nschedule: {epochs: 6, warmup_epochs: 1, steps: 9}\n",
    )
    assert read_yaml(path) == {
        "model": {"depth": 34, "variant": "v1", "compile": True},
        "schedule": {"epochs": 7, "warmup_epochs": 1, "steps": None},  # null is a value
        "resume": "none",
    }
    config = load(f"--config={path}", "--schedule.epochs=8")
    assert (config.schedule.epochs, config.schedule.warmup_epochs) == (8, 1)
    assert config.run.name == "a"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"a": "a: ["}, r"--config \S+a\.yaml is not YAML"),
        ({"a": "\x00"}, "is not YAML"),
        ({"a": "- model"}, "must hold settings by name"),
        ({"a": "data: 5\n"}, "data must hold settings by name, not 5"),
        ({"a": "model: {depth: deep}"}, "model.depth=deep must be a whole"),
        ({"a": "model: {depth: 18}\nmodel: {variant: v1}\n"}, r"a\.yaml is not YAML: model occurs"),
        ({"a": "base: zzz.yaml"},
         r"a\.yaml: base zzz\.yaml cannot be read \(No such file or directory: /.*/zzz.yaml\); "
         "a base is given from the folder of the file that names it; those that come along are in"),
        ({"a": "base: configs/mini/common.yaml", "comon": ""},
         r"base configs/mini/common\.yaml cannot be read \(No such file or directory: /\S+/configs/"
         r"mini/common.yaml\); .*; near are: [^,]*/configs/mini/common.yaml(, [^,]*){0,4}$"),
        ({"a": "base: comon.yaml", "common": ""}, r"near are: (\S+, )*common\.yaml"),
        ({"a": "base: a.yaml"}, r"a\.yaml builds on itself: \S+a\.yaml -> \S+a\.yaml; take base"),
        ({"a": "base: b.yaml", "b": "base: c.yaml", "c": "base: ../HERE/b.yaml"},
         r"b\.yaml builds on itself: \S+a\.yaml -> \S+b\.yaml -> \S+c\.yaml -> \S+b\.yaml; take"),
        ({"a": "base: [b.yaml]"}, r"a\.yaml: base=\['b\.yaml'\] must be the path of a YAML file"),
        ({"a": "base: b.yaml", "b": "model: {depht: 18}"},
         r"b\.yaml: there is no setting model\.depht; did you mean model\.depth\?"),
        ({"a": "bas: b.yaml"}, r"a\.yaml: there is no setting bas; did you mean base\?"),
        ({"a": "base: b.yaml", "b": "a: ["}, r"a\.yaml: base b\.yaml is not YAML"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_configuration_is_refused(write, tmp_path, texts, message):
    filled = {name: text.replace("HERE", tmp_path.name) for name, text in texts.items()}
    with pytest.raises(ConfigError, match=message):
        load(f"--config={write(**filled)}")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config=zzz.yaml",
         r"--config zzz\.yaml cannot be read .*; those that come along are in /\S+/configs$"),
        ("--config=configs/paper/cifar10/resnet-33.yaml",
         r"near are: configs/paper/cifar10/resnet-32.yaml(, configs/\S+){1,4}$"),
        ("--config", "--config needs the path"),
    ],
)  # fmt: skip
def test_a_missing_yaml_is_answered_with_those_there_are(argument, message):
    with pytest.raises(ConfigError, match=message):
        load(argument)


def test_small_classes_are_made_up_for_once():
    balanced = DataConfig(sampling="balanced")
    with pytest.raises(ConfigError, match=r"optim\.class_weights=balanced both make up for class"):
        Config(data=balanced, optim=OptimConfig(class_weights="balanced"))
    Config(data=balanced)
    Config(optim=OptimConfig(class_weights="balanced"))
