"""`--print-config`: every setting with what it means, in a YAML that is read back."""

import re

import pytest
import yaml
from jobs import REPOSITORY

from pipeline.config import Config, setting_names
from pipeline.config.commented import commented
from pipeline.config.reading import CONFIGS, field_docs, load_config
from pipeline.system.console import printable
from pipeline.train.__main__ import main

FILES = sorted(CONFIGS.rglob("*.yaml"))
ODD = (
    "--run.name=010", "--data.root=null/ #x", "--data.cache_dir=~/caché", "--model.freeze=[stem,1]",
    "--schedule.drop_epochs=[]", "--optim.amp=off", "--data.color_std=1e-05", "--init=a: b.pth",
    "--run.checkpoint_every_sec=inf", "--optim.head_lr=3",
)  # fmt: skip


def read_back(text: str, tmp_path) -> Config:
    path = tmp_path / "printed.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config([f"--config={path}"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_it_is_read_back_to_the_same_configuration(path, tmp_path):
    config = load_config([f"--config={path}"])
    assert read_back(commented(config), tmp_path) == config


def test_odd_values_are_read_back_too(tmp_path):
    config = load_config([f"--config={REPOSITORY}/configs/demo.yaml", *ODD])
    assert read_back(commented(config), tmp_path) == config


def test_a_mapping_is_written_as_the_configurations_have_it():
    text = commented(load_config([f"--config={CONFIGS}/recipes/ffcv-16.yaml"]))
    assert "  image_sizes: {0: 160, 12: 192} # default: null\n" in text


def test_every_setting_stands_below_what_it_means():
    text = commented(load_config([f"--config={REPOSITORY}/configs/own.yaml"]))
    flat = " ".join(re.sub(r"^ *#", "", line).strip() for line in text.splitlines())
    tree = yaml.safe_load(text)
    for name in setting_names():
        part, _, rest = name.rpartition(".")
        assert rest in (tree[part] if part else tree), name
        owner = type(getattr(Config(), part)) if part else Config
        assert f"{field_docs(owner)[rest]} {rest}:" in flat, name
    assert "  head_lr: 0.4 # default: null\n" in text
    assert "  momentum: 0.9\n" in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_command_prints_it_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [f"--config={REPOSITORY}/configs/demo.yaml", "--run.seed=3"]
    main([*argv, "--print-config"])
    printed = capsys.readouterr().out
    assert printed == "".join(
        f"{printable(n)}\n" for n in commented(load_config(argv)).splitlines()
    )
    assert "  seed: 3 # default: 0\n" in printed
    assert list(tmp_path.iterdir()) == []
