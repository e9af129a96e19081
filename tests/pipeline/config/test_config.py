"""The configuration: what is accepted, what each mistake is answered, and how fast it may be."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jobs import REPOSITORY, environment

from pipeline.config import Config, ConfigError, RunConfig, setting_names
from pipeline.config.reading import CONFIGS, DEFAULT_CONFIG, load_config, new_parser, read_yaml

LOADS = """
import sys
from {module}.__main__ import main
try:
    main(sys.argv[1:])
except (ValueError, SystemExit) as answer:
    print("answer:", answer)
print("heavy:", [name for name in ("torch", "nvidia", "horovod") if name in sys.modules])
"""


def load(*argv: str) -> Config:
    return load_config(argv, "prog", "what it does")


@pytest.fixture
def yaml_file(tmp_path):
    """Writes a YAML and returns the option that names it."""

    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return f"--config={path}"

    return write


def test_every_setting_has_a_help_text():
    actions = {action.dest: action for action in new_parser("prog", "")._actions}
    missing = [name for name in setting_names() if not (actions[name].help or "").strip()]
    assert missing == []
    assert {"data.root", "run.keep_checkpoints", "resume"} <= set(setting_names())


def test_help_shows_the_text_and_the_default_of_a_setting(capsys):
    with pytest.raises(SystemExit) as end:
        load("--help")
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Images per optimizer step over all ranks" in shown
    assert "default: 256" in shown
    assert [name for name in setting_names() if f"--{name}" not in shown] == []


@pytest.mark.parametrize(
    ("module", "argv", "answer"),
    [
        ("pipeline.train", ["--help"], "answer: 0"),
        ("pipeline.train", ["--model.depth=19"], "answer: model.depth=19 does not exist"),
        ("pipeline.train", ["--data.global_batch_size=255"], "answer: data.global_batch_size=255"),
        ("pipeline.evaluate", ["--help"], "answer: 0"),
        ("pipeline.evaluate", ["--data.root=x"], "answer: --checkpoint is missing"),
        ("pipeline.evaluate", ["--checkpoint=none.pt"], "answer: --checkpoint none.pt does not"),
        ("pipeline.evaluate", ["--checkpoint=tests"], "answer: --checkpoint tests is a folder"),
        ("pipeline.evaluate", ["--model.depth=50"], "answer: --model.depth comes from the check"),
        ("pipeline.train", ["--resume=latest"], "answer: --resume is neither auto nor none, and"),
        ("pipeline.train", ["configs/demo.yaml"], "did you mean --config configs/demo.yaml?"),
        ("pipeline.train", ["--data.area=0.3"], "in brackets, such as [30,60]. Got value: 0.3"),
        ("pipeline.prepare", ["demo", "--trian=3"], "answer: "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_help_and_wrong_settings_are_answered_before_anything_heavy_is_loaded(module, argv, answer):
    done = subprocess.run(
        [sys.executable, "-c", LOADS.format(module=module), *argv],
        cwd=REPOSITORY, env=environment(HOROVOD_SIZE="2"), text=True, capture_output=True,
    )  # fmt: skip
    assert answer in done.stdout, done.stderr
    assert "heavy: []" in done.stdout


@pytest.mark.parametrize(
    ("text", "seen", "meant"),
    [
        ("model: {depht: 18}", "model.depht", "model.depth"),
        ("data: {global_batch: 18}", "data.global_batch", "data.global_batch_size"),
        ("optim: {lr: 18}", "optim.lr", "optim.base_lr"),
        ("depth: 18", "depth", "model.depth"),
        ("drops: 3", "drops", "schedule.max_drops"),  # by its last part
        ("resum: none", "resum", "resume"),
    ],
)
def test_an_unknown_name_in_a_yaml_is_answered_with_the_nearest(yaml_file, text, seen, meant):
    option = yaml_file(text)
    with pytest.raises(ConfigError) as error:
        load(option)
    path = option.partition("=")[2]
    assert str(error.value) == f"{path}: there is no setting {seen}; did you mean {meant}?"


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("--model.depht=18", "--model.depht; did you mean --model.depth?"),
        ("--depth=18", "--depth; did you mean --model.depth?"),
        ("--schedule.epoch", "--schedule.epoch; did you mean --schedule.epochs?"),
        ("--qqqq=1", "--qqqq; --help lists the settings"),
    ],
)
def test_an_unknown_option_is_answered_with_the_nearest(argument, hint):
    with pytest.raises(ConfigError) as error:
        load(argument)
    assert str(error.value) == f"command line: there is no setting {hint}"


@pytest.mark.parametrize(
    ("argument", "named", "seen"),
    [
        ("--model.depth=deep", "model.depth", "deep"),
        ("--model.depth=18.5", "model.depth", "18.5"),
        ("--data.flip=maybe", "data.flip", "maybe"),
        ("--data.area=[0.5]", "data.area", "0.5"),
        ("--data.train_crop=center", "'random_resized_crop', 'scale_jitter'", "center"),
        ("--model.variant=v2", "'v1', 'v1.5'", "v2"),
        ("--optim.amp=int8", "'off', 'bf16', 'fp16'", "int8"),
    ],
)
def test_a_wrong_type_or_choice_names_setting_value_and_rule(argument, named, seen):
    with pytest.raises(ConfigError) as error:
        load(argument)
    message = str(error.value)
    assert message.startswith(argument[2:].partition("=")[0])
    assert named in message
    assert seen in message
    assert "\n" not in message


def test_a_wrong_type_in_a_yaml_names_setting_and_value(yaml_file):
    with pytest.raises(ConfigError, match=r"model\.depth: .*int.*deep"):
        load(yaml_file("model: {depth: deep}"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data.global_batch_size=0"], "data.global_batch_size=0 must be at least 1"),
        (["--data.local_batch_size=0"], "data.local_batch_size=0 must be at least 1"),
        (["--data.image_size=0"], "data.image_size=0 must be at least 1"),
        (["--data.prefetch_batches=0"], "data.prefetch_batches=0 must be at least 1"),
        (["--data.threads=0"], "data.threads=0 must be at least 1, or null"),
        (["--data.area=[0.5,0.4]"], "data.area=[0.5, 0.4] must satisfy 0 < least <= most <= 1"),
        (["--data.area=[0,0.4]"], "data.area=[0.0, 0.4] must satisfy 0 < least <= most <= 1"),
        (["--data.area=[0.5,1.4]"], "data.area=[0.5, 1.4] must satisfy 0 < least <= most <= 1"),
        (
            ["--data.train_crop=scale_jitter", "--data.short_side=[200,480]"],
            "data.short_side=[200, 480] must satisfy data.image_size=224 <= least <= most",
        ),
        (["--data.val_resize=200"], "data.val_resize=200 must be at least data.image_size=224"),
        (["--data.color_std=0"], "data.color_std=0.0 must be greater than 0, or null"),
        (["--model.depth=20"], "model.depth=20 does not exist"),
        (["--optim.base_lr=0"], "optim.base_lr=0.0 must be greater than 0"),
        (["--optim.momentum=1"], "optim.momentum=1.0 must lie in [0, 1)"),
        (["--optim.weight_decay=-1"], "optim.weight_decay=-1.0 must be at least 0"),
        (["--optim.label_smoothing=1"], "optim.label_smoothing=1.0 must lie in [0, 1)"),
        (["--schedule.epochs=0"], "schedule.epochs=0.0 must be greater than 0"),
        (
            ["--schedule.epochs=3"],
            "schedule.warmup_epochs=5.0 must be at least 0 and less than schedule.epochs=3.0",
        ),
        (["--schedule.warmup_start_factor=0"], "schedule.warmup_start_factor=0.0 must lie in"),
        (["--schedule.drop_epochs=[60,30]"], "schedule.drop_epochs=[60.0, 30.0] must be positive"),
        (["--schedule.drop_epochs=[0]"], "schedule.drop_epochs=[0.0] must be positive and rising"),
        (["--schedule.patience=0"], "schedule.patience=0 must be at least 1"),
        (["--schedule.min_improvement=-1"], "schedule.min_improvement=-1.0 must be at least 0"),
        (["--schedule.max_drops=-1"], "schedule.max_drops=-1 must be at least 0"),
        (["--run.name=a/b"], "run.name='a/b' must be a plain folder name"),
        (["--run.name=.."], "run.name='..' must be a plain folder name"),
        (["--run.seed=-1"], "run.seed=-1 must lie in [0, 2**63)"),
        (["--run.threads=0"], "run.threads=0 must be greater than 0, or null"),
        (["--run.checkpoint_every_steps=0"], "run.checkpoint_every_steps=0 must be greater than 0"),
        (["--run.checkpoint_every_sec=0"], "run.checkpoint_every_sec=0.0 must be greater than 0"),
        (["--run.log_every_steps=0"], "run.log_every_steps=0 must be at least 1"),
        (["--run.keep_checkpoints=0"], "run.keep_checkpoints=0 must be at least 1"),
        (["--model.shortcut=D"], "model.shortcut: D is none of Literal['A', 'B', 'C'], null"),
        (
            ["--schedule.drop_epochs=3"],
            "schedule.drop_epochs: 3 is none of tuple[float, ...], null; a tuple is a list in",
        ),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_value_out_of_range_names_setting_value_and_rule(yaml_file, argv, message):
    with pytest.raises(ConfigError) as error:
        load(yaml_file(""), *argv)
    assert message in str(error.value)


def test_the_limits_themselves_are_accepted():
    config = load(
        "--data.area=[1,1]", "--data.train_crop=scale_jitter", "--data.short_side=[224,224]",
        "--data.val_resize=224", "--optim.momentum=0", "--schedule.warmup_epochs=0",
        "--schedule.drop_epochs=[]", "--schedule.max_drops=0", "--run.checkpoint_every_sec=null",
    )  # fmt: skip
    assert config.data.short_side == (224, 224)
    assert config.schedule.drop_epochs == ()
    assert config.run.checkpoint_every_sec is None


def test_the_command_line_overrides_the_yaml_which_overrides_the_defaults(yaml_file):
    option = yaml_file("model: {depth: 18, variant: v1}\ndata: {image_size: 64}")
    config = load("--model.depth=34", option, "--resume", "none")
    assert config.model.depth == 34  # both: whatever the order of the arguments
    assert config.model.variant == "v1"
    assert config.data.image_size == 64
    assert config.optim == Config().optim
    assert config.resume == "none"


def test_numbers_in_a_yaml_may_have_an_exponent(yaml_file):
    # PyYAML reads 1e-4, which has no dot, as a string.
    assert load(yaml_file("optim: {weight_decay: 1e-4}")).optim.weight_decay == 1e-4


def test_an_empty_part_or_file_sets_nothing(yaml_file):
    for text in ("data:\n  # root: elsewhere\n", ""):
        path = yaml_file(text)
        assert load(path) == Config(run=RunConfig(name=Path(path).stem))


def test_a_run_is_called_after_its_configuration_unless_it_is_named(yaml_file):
    assert load_config(["--config", "configs/demo.yaml"], "prog", "").run.name == "demo"
    assert load_config(["--config=configs/demo.yaml", "--run.name=x"], "prog", "").run.name == "x"
    assert load(yaml_file("run: {name: y}")).run.name == "y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not YAML"),
        ("- model", "must hold settings by name"),
        ("\x00", "is not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(yaml_file, text, message):
    with pytest.raises(ConfigError, match=message):
        load(yaml_file(text))


def test_a_missing_yaml_is_answered_with_those_there_are():
    with pytest.raises(ConfigError, match=r"--config none\.yaml .*configs/demo\.yaml"):
        load("--config=none.yaml")
    near = "there are: configs/paper/cifar10/resnet-32.yaml, .* and others$"
    with pytest.raises(ConfigError, match=near):
        load("--config=configs/paper/cifar10/resnet-33.yaml")
    with pytest.raises(ConfigError, match="--config needs the path"):
        load("--config")


def test_the_written_yaml_reads_back_to_the_equal_configuration(yaml_file):
    config = load(
        "--run.name=123", "--data.root=null", "--data.color_std=0.1", "--optim.base_lr=3e-05",
        "--schedule.drop_epochs=[1.5,2]", "--data.threads=3", "--resume=none", "--run.dir=a: b #",
    )  # fmt: skip
    assert (config.run.name, config.data.root) == ("123", "null")
    assert load(yaml_file(config.to_yaml())) == config
    assert load(yaml_file(Config().to_yaml())) == Config()


def test_every_setting_can_be_looked_up_and_stands_in_the_written_yaml():
    config = Config()
    tree = yaml.safe_load(config.to_yaml())
    for name in setting_names():
        part, _, field = name.partition(".")
        assert (field in tree[part]) if field else (part in tree)
        config.get(name)
    assert config.get("model.depth") == 50


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.depth = 18  # type: ignore[misc]


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_file_in_configs_is_valid_and_says_what_it_is(path: Path):
    load(f"--config={path}")
    assert path.read_text().startswith("# ")


def test_without_arguments_the_resnet50_on_imagenet_is_trained():
    assert DEFAULT_CONFIG == CONFIGS / "resnet50.yaml"
    assert load() == load("--config=configs/resnet50.yaml")
    assert (load().model.depth, load().data.root) == (50, "data/imagenet")


@pytest.mark.parametrize(
    ("ranks", "nearest"),
    [("3", "the nearest that are: 255 and 258"), ("512", "nearest that is: 512")],
)
def test_a_global_batch_that_ranks_cannot_share_is_answered_with_the_nearest(
    ranks, nearest, monkeypatch
):
    from pipeline.train.__main__ import main

    monkeypatch.setenv("HOROVOD_SIZE", ranks)
    with pytest.raises(ValueError, match=f"=256 is not divisible by {ranks} ranks") as error:
        main(["--data.global_batch_size=256"])
    assert nearest in str(error.value)


def test_a_name_that_stands_twice_in_a_yaml_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("model: {depth: 18}\nmodel: {variant: v1}\n")
    with pytest.raises(ConfigError, match="twice.yaml is not YAML: model stands twice"):
        read_yaml(path)


def test_a_part_without_names_is_refused(tmp_path):
    path = tmp_path / "flat.yaml"
    path.write_text("data: 5\n")
    with pytest.raises(ConfigError, match="data must hold settings by name, not 5"):
        read_yaml(path)
