"""One reading: what a spelling means is decided by the setting that it is for, the same in a YAML
as on the command line."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import jobs
import pytest
import yaml

from pipeline.config import Config, ConfigError, DataConfig, names_for, setting_names, setting_types
from pipeline.config.reading import (
    add_options,
    command_parser,
    config_of,
    load_config,
    new_parser,
    overrides,
    parse,
    parse_overrides,
    read_yaml,
)
from pipeline.config.values import rule
from pipeline.prepare.options import IndexOptions

SPELLINGS = [
    "", "null", "Null", "~", "~/x", "~nobody-of-this-name/x", "true", "True", "yes", "no", "on",
    "off", "OFF", "auto", "none", "abc", "a b", "5", "+5", "-5", "010", "00", "0x10", "0b1", "1:30",
    "1_000", "1__0", "1e3", "1e-4", "1E-4", ".5", "5.", "18.0", "0.5", "01.5", "1.5.2", "5,000",
    "1e999", ".inf", "-.inf", "inf", ".nan", "2026-11-29", "2026-11-29 12:00:00", "0o10", "٣", "=",
    "0.08", "9" * 30, "9" * 5000,
]  # fmt: skip
LISTS = ["[]", "[1]", "[1,2]", "[1, 2]", "[0.5, 1]", "[1,2,3]", "[01, 2]", "[1,null]", "['1', 2]",
         "[[1],2]", "{a: 1}", "[1,2"]  # fmt: skip
"""Only for settings that are no text: on the command line brackets are part of it."""

CASES = [(name, s) for name in setting_names() for s in SPELLINGS] + [
    (name, s) for name in setting_names() for s in LISTS if "str" not in str(setting_types()[name])
]


@pytest.fixture(scope="module")
def parser():
    return new_parser("prog", "")


def outcome(read: Any) -> Any:
    """A value with its type, or the sentence that refused it."""
    try:
        found = read()
    except ConfigError as error:
        # How a list is written is shown as it was read.
        return re.sub("[' ]", "", str(error))
    return type(found), found if found == found else "nan"


def in_yaml(path: Path, name: str, text: str) -> Any:
    part, _, rest = name.rpartition(".")
    path.write_text(f"{part}:\n  {rest}: {text}\n" if part else f"{rest}: {text}\n")
    tree = read_yaml(path)
    return tree[part][rest] if part else tree[rest]


def dotted(path: Path, name: str, text: str) -> Any:
    path.write_text(f"{name}: {text}\n")
    part, _, rest = name.rpartition(".")
    return read_yaml(path)[part][rest] if part else read_yaml(path)[rest]


def test_every_spelling_of_every_setting_is_the_same_in_a_yaml_and_on_the_command_line(
    parser, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", "/home/me")
    path, different = tmp_path / "a.yaml", []
    for name, text in CASES:
        told = outcome(lambda: parse(parser, [f"--{name}={text}"])[name])  # noqa: B023
        for form in (in_yaml, dotted)[: 2 if text in ("", "null", "5", "off", "010") else 1]:
            found = outcome(lambda: form(path, name, text))  # noqa: B023
            if isinstance(found, str):  # which says where the value is from
                found = found.removeprefix(f"{path}:")
            # Half a bracket is no YAML, and so not even text.
            if found != told and not (text == "[1,2" and "isnotYAML" in found):
                different.append((name, text, form.__name__, found, told))
    assert different == []


@pytest.mark.parametrize("text", [*SPELLINGS[::2], *LISTS[::3]], ids=lambda text: text[:20])
def test_no_spelling_ends_a_load_with_another_error_than_a_sentence(text, tmp_path):
    path = tmp_path / "a.yaml"
    for name in setting_names():
        part, _, rest = name.rpartition(".")
        path.write_text(f"{part}:\n  {rest}: {text}\n" if part else f"{rest}: {text}\n")
        try:
            found = load_config([f"--config={path}"], "prog", "")
        except ConfigError as error:
            assert "\n" not in str(error)
        else:
            assert found.get(name) is not None or "null" in rule(setting_types()[name])


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("optim.amp", "off", "off"),
        ("data.flip", "off", False), ("data.flip", "True", True), ("data.flip", "yes", True),
        ("data.threads", "1_000", 1000), ("data.threads", "+5", 5), ("run.seed", "0x10", 16),
        ("data.threads", "null", None),
        ("optim.weight_decay", "1e-4", 1e-4), ("optim.weight_decay", ".5", 0.5),
        ("optim.weight_decay", "5", 5.0), ("schedule.min_improvement", ".inf", math.inf),
        ("schedule.drop_epochs", "[30, 60.5]", (30.0, 60.5)), ("schedule.drop_epochs", "[]", ()),
        ("run.name", "010", "010"), ("run.name", "2026-11-29", "2026-11-29"),
        ("run.name", "off", "off"), ("profile", "5", "5"),
        ("data.root", "~/x", "/home/me/x"), ("data.root", "~", "/home/me"),
        ("data.root", "~nobody-of-this-name/x", "~nobody-of-this-name/x"),
        ("data.root", "a/~/x", "a/~/x"), ("resume", "~/a.pt", "/home/me/a.pt"),
        ("data.exclude", "~/e.json", "/home/me/e.json"), ("run.dir", "~/runs", "/home/me/runs"),
        ("data.cache_dir", "~/c", "/home/me/c"),
    ],
)  # fmt: skip
def test_a_spelling_means_what_its_setting_makes_of_it(
    name, text, value, parser, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", "/home/me")
    for found in (
        in_yaml(tmp_path / "a.yaml", name, text), parse(parser, [f"--{name}={text}"])[name]
    ):  # fmt: skip
        assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.flip", "", "data.flip is empty; it must be true or false"),
        ("optim.amp", "", "optim.amp is empty; it must be one of off, tf32, bf16, fp16"),
        ("data.root", "", "data.root is empty; it must be a path"),
        ("data.threads", "", "data.threads is empty; it must be a whole number or null"),
        ("data.flip", "null", "data.flip=null must be true or false"),
        ("data.root", "null", "data.root=null must be a path; null stands for no value"),
        ("data.cache_dir", "~", "data.cache_dir=~ must be a path or null; ~ alone could be either, "
         "so write null, or ~/ for the home folder"),
        ("data.threads", "~", "data.threads=~ must be a whole number or null"),
        ("data.threads", "010", "data.threads=010 must be a whole number or null; write it "
         "without the 0 in front, which may mean base 8"),
        ("data.threads", "1:30", "data.threads=1:30 must be a whole number or null"),
        ("data.threads", "1e3", "data.threads=1e3 must be a whole number or null"),
        ("data.threads", "9" * 30, f"data.threads={'9' * 30} must be a whole number or null"),
        ("data.threads", "9" * 5000,
         f"data.threads={'9' * 200}... (5,000 characters) must be a whole number or null"),
        ("optim.base_lr", "1:30", "optim.base_lr=1:30 must be a number"),
        ("optim.base_lr", "010", "optim.base_lr=010 must be a number; write it without the 0 in "
         "front, which may mean base 8"),
        ("optim.base_lr", "1e999", "optim.base_lr=1e999 must be a number"),
        ("optim.amp", "OFF", "optim.amp=OFF must be one of off, tf32, bf16, fp16; did you "
         "mean off?"),
        ("optim.amp", "false", "optim.amp=false must be one of off, tf32, bf16, fp16; did you "
         "mean off?"),
        ("optim.amp", "fp61", "optim.amp=fp61 must be one of off, tf32, bf16, fp16; did you "
         "mean fp16?"),
        ("optim.gradient_compression", "no", "optim.gradient_compression=no must be one of none, "
         "fp16, bf16; did you mean none?"),
        ("data.area", "[0.5, null]",
         "data.area=[0.5,null] must be a list of 2 numbers in brackets, such as [30,60]"),
    ],
)  # fmt: skip
def test_a_refused_spelling_is_answered_with_the_rule(name, text, message, parser, tmp_path):
    with pytest.raises(ConfigError) as error:
        in_yaml(tmp_path / "a.yaml", name, text)
    assert str(error.value) == f"{tmp_path}/a.yaml: {message}"
    with pytest.raises(ConfigError) as error:
        parse(parser, [f"--{name}={text.replace(' ', '')}"])
    assert str(error.value) == message


def test_quotes_in_a_yaml_make_text_of_text_and_are_nothing_to_other_settings(tmp_path):
    path = tmp_path / "a.yaml"
    for name, text, value in (
        ("run.name", "'null'", "null"), ("data.cache_dir", '"null"', "null"),
        ("data.threads", '"4"', 4), ("data.flip", "'true'", True), ("data.threads", "'null'", None),
        ("data.area", "'[0.1, 1]'", (0.1, 1.0)), ("data.root", "'~/x'", str(Path.home() / "x")),
    ):  # fmt: skip
        found = in_yaml(path, name, text)
        assert (type(found), found) == (type(value), value)
    path.write_text("data:\n  area:\n  - '0.1'\n  - 1\n")
    assert read_yaml(path) == {"data": {"area": (0.1, 1.0)}}


def test_a_value_of_a_base_is_named_with_that_file_and_one_of_the_command_line_without(tmp_path):
    path = files(tmp_path, a="base: b.yaml", b="optim.amp: maybe")
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/b.yaml: optim.amp=maybe must be one of"):
        load_config([f"--config={path}"])
    files(tmp_path, b="optim.base_lr: 0.5")
    with pytest.raises(ConfigError, match="^optim.base_lr=-1.0 must be "):
        load_config([f"--config={path}", "--optim.base_lr=-1"])


# Names.


def files(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(texts))}.yaml"


def test_a_whole_name_at_the_top_sets_what_it_names(tmp_path):
    path = files(tmp_path, a="run.seed: 3\ndata.root: x\ndata: {threads: 2}\nmodel.depth: 18\n")
    config = load_config([f"--config={path}"], "", "")
    assert (config.run.seed, config.data.root, config.data.threads) == (3, "x", 2)
    assert config.model.depth == 18
    assert load_config([f"--config={path}", "--run.seed=4"], "", "").run.seed == 4


@pytest.mark.parametrize(
    ("above", "below"),
    [
        ("run.seed: 3", "run: {seed: 5, threads: 2}"),
        ("run: {seed: 3}", "run.seed: 5\nrun.threads: 2"),
        ("run.seed: 3\nrun: {}", "run: {threads: 2}\nrun.seed: 5"),
    ],
)
def test_a_file_overrides_its_base_in_either_form(above, below, tmp_path):
    path = files(tmp_path, a="base: b.yaml\n" + above, b=below)
    run = load_config([f"--config={path}"]).run
    assert (run.seed, run.threads) == (3, 2)


@pytest.mark.parametrize("text", ["run.seed: 3\nrun: {seed: 3}", "run: {seed: 3}\nrun.seed: 4"])
def test_a_setting_in_both_forms_in_one_file_is_refused(text, tmp_path):
    path = files(tmp_path, a=text)
    message = r"a\.yaml: run\.seed occurs twice, as run\.seed and below run, in line \d and line "
    with pytest.raises(ConfigError, match=message):
        load_config([f"--config={path}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a {seed: 3}\nrun: {<<: *a}", "merge keys .<<. are not read; take `base: FILE`"),
        ("run: {seed: !!int 3}", "a value has the tag !!int; write it without"),
        ("run: {seed: !mine 3}", "a value has the tag !mine"),
        ("run: {seed: !!python/name:os.system x}", "a value has the tag"),
        ("run: {[a]: 3}", "a name is a list or a mapping"),
        ("run: &a [*a]", "an alias in it stands for what contains the alias"),
        ("a: " + "[" * 100_000, "it is nested too deeply"),
        ("run: {seed: 3}\n---\nrun: {seed: 4}", "expected a single document"),
        ("run: {seed: 3, seed: 4}", "seed occurs twice, in line 1 and line 1$"),
        ("run.seed: 3\n\nrun.seed: 4", "run.seed occurs twice, in line 1 and line 3$"),
        (
            "run:\n  seed: 3\n bad: 4",
            "line 3, column 2: while parsing a block mapping, expected <block end>, but found "
            "'<block mapping start>'$",
        ),
        ("run: {seed: 3\x00}", "character 14, #x0000: special characters are not allowed$"),
    ],
)
def test_what_only_yamls_own_types_need_is_refused(text, message, tmp_path):
    with pytest.raises(ConfigError, match=f"a.yaml is not YAML: .*{message}"):
        load_config([f"--config={files(tmp_path, a=text)}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {data.root: x}", "there is no setting run.data.root; did you mean data.root?"),
        ("run.seed.x: 3", "there is no setting run.seed.x; did you mean run.seed?"),
        ("1: 3", "there is no setting 1;"),
        ("null: 3", "there is no setting null;"),
        ("base:", "base='' must be the path of a YAML file"),
        ("base: null", "base='null' must be the path of a YAML file"),
        ("run: ''", "run must hold settings by name, not "),
        ("run: [seed]", r"run must hold settings by name, not \[seed\]"),
        ("run: true", "run must hold settings by name, not true"),
        ("resume:", "resume is empty; it must be a path"),
        ("just text", "must hold settings by name"),
        (
            "run.seed: 3\noptim:\n# amp: off",
            "a.yaml: optim holds nothing; give settings below it, or take out line 2$",
        ),
        ("run: null", "a.yaml: run holds nothing; "),
        ("runn: {seed: 3}", "there is no setting runn; did you mean run\\?"),
        (
            "run.name: a/b",
            "a.yaml: run.name='a/b' must be a plain folder name; the folder that it "
            "lies in is run.dir",
        ),
        (
            "data.train_crop: padded",
            "a.yaml: data.train_crop=padded does not go with data.dataset=null; ",
        ),
        ("optim.base_lr: -1", "a.yaml: optim.base_lr=-1.0 must be "),
    ],
)
def test_a_name_that_sets_nothing_is_refused(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_config([f"--config={files(tmp_path, a=text)}"])


def test_aliases_and_a_base_below_the_home_folder_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = files(tmp_path, a="base: ~/b.yaml\ndata: {threads: &n 2}\nrun: {threads: *n}", b="")
    config = load_config(["--config=~/a.yaml"], "", "")
    assert (config.data.threads, config.run.threads) == (2, 2)
    assert config == load_config(["--config", str(path)], "", "")


# What this program wrote itself.


def test_stored_configurations_of_any_value_read_back(tmp_path):
    config = load_config(["--run.name=1e-4", "--data.root=010", "--run.dir=off", "--profile=5"])
    for one in (config, Config()):
        text = one.to_yaml()
        assert config_of(yaml.safe_load(text)) == one
        assert config_of(yaml.safe_load(text)).to_yaml() == text
        assert load_config([f"--config={files(tmp_path, a=text)}"]) == one


def test_a_stored_name_that_is_no_text_of_utf8_reads_back(tmp_path):
    config = load_config(["--data.root=caf\udce9", "--run.name=a"])
    text = config.to_yaml()
    assert text.isascii() and config_of(yaml.safe_load(text)) == config
    assert load_config([f"--config={files(tmp_path, a=text)}"]) == config


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"data": {"rot": "x"}}, "there is no setting data.rot; did you mean data.root?"),
        ({"data": {"threads": 1.5}}, "data.threads=1.5 must be a whole number or null"),
        ({"data": {"flip": None}}, "data.flip=null must be true or false"),
    ],
)
def test_a_stored_configuration_of_other_names_or_types_is_refused(tree, message):
    with pytest.raises(ConfigError, match=message):
        config_of(tree)


@pytest.mark.parametrize(
    ("argv", "seen"),
    [
        ("pipeline.train --config=~/no.yaml", "--config /home/me/no.yaml cannot be read"),
        ("pipeline.train --resume=~/a.pt", "the checkpoint /home/me/a.pt does not exist"),
        ("pipeline.evaluate --checkpoint=~/a.pt", "--checkpoint /home/me/a.pt does not exist"),
        ("pipeline.predict --checkpoint=~/a.pt", "--checkpoint /home/me/a.pt does not exist"),
        ("pipeline.predict --checkpoint=setup.py ~/cat.jpg", "image /home/me/cat.jpg does not ex"),
        ("pipeline.predict --checkpoint=setup.py --json=~/a/b setup.py", "--json /home/me/a/b:"),
        ("pipeline.export --checkpoint=~/a.pt --out=b.pth", "--checkpoint /home/me/a.pt does not"),
        ("pipeline.export --checkpoint=setup.py --out=~/a/b.pth", "--out /home/me/a/b.pth: the"),
        ("pipeline.export --weights=~/a.pth --out=b.pt", "--weights /home/me/a.pth does not exist"),
        ("pipeline.report --out=~setup.py ~/a", "/home/me/a is no run"),
        ("pipeline.runs ~/a ~/b", "no run /home/me/a below|no run a below /home/me"),
        ("pipeline.runs --follow ~/a", "no run a below /home/me"),
        ("pipeline.prepare verify --root ~/a", "--root /home/me/a is not a folder"),
        ("pipeline.prepare imagenet --train-tar=~/a --val-tar=b --devkit=c --out=d",
         "--train-tar /home/me/a is not a file"),
        ("pipeline.benchmark predict --allreduce=~/a", "--allreduce /home/me/a cannot be read"),
        ("pipeline.benchmark model --config=~/a.yaml", "--config /home/me/a.yaml cannot be read"),
        ("pipeline.benchmark model --json=~/a/b.json", "--json /home/me/a/b.json: the folder"),
        ("pipeline.benchmark.gpu_check --json=~/a/b", "--json /home/me/a/b: the folder"),
        ("launch.doctor --config=~/a.yaml", "--config /home/me/a.yaml cannot be read"),
    ],
)  # fmt: skip
def test_a_tilde_is_the_home_folder_in_every_command(argv, seen, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    command, *options = argv.split()
    with pytest.raises(ValueError, match=seen):
        jobs.command_module(command).main(options)


def test_null_takes_the_place_of_a_stored_value():
    parser = command_parser("prog", "")
    given = parse_overrides(parser, ["--data.threads=null"], "evaluate")
    stored = Config(data=DataConfig(threads=3, prefetch_batches=2))
    found = overrides(given, names_for("evaluate"), yaml.safe_load(stored.to_yaml()))
    assert (found.data.threads, found.data.prefetch_batches) == (None, 2)


def test_options_of_other_commands_are_read_likewise(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = command_parser("prog", "")
    add_options(parser, IndexOptions, "-")
    found = parse(parser, ["--root=~/x", "--cache-dir", "~/y"])
    assert (found.root, found.cache_dir) == (tmp_path / "x", tmp_path / "y")
    with pytest.raises(ConfigError, match="--root is empty; it must be a path"):
        parse(parser, ["--root="])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\nerror: b", "a blank at an end|not printed"),
        ("a\x1b[31m", "not printed"), ("a\udcff", "not printed"), (" a", "a blank at an end"),
        (".a", r"begins with \."), ("-a", "begins with -"),
        ("a" * 201, "is 201 bytes long, of at most 200"), ("ä" * 101, "is 202 bytes long"),
        ("a/b", "must be a plain folder name"),
    ],
)  # fmt: skip
def test_a_run_is_not_given_a_name_that_no_folder_should_have(name, reason):
    with pytest.raises(ConfigError, match=reason) as error:
        load_config([f"--run.name={name}"])
    assert "run.name=" in str(error.value) and str(error.value).isprintable()


def test_a_checkpoint_of_a_run_with_such_a_name_is_still_read():
    tree = yaml.safe_load(Config().to_yaml())
    tree["run"]["name"] = "-old"
    assert config_of(tree).run.name == "-old"
