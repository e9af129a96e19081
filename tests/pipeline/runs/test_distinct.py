"""What a list says of runs that look alike, and of names that no run has."""

import pytest
from made_runs import CIFAR, RunMaker

from pipeline.config import ConfigError
from pipeline.config.reading import load_config
from pipeline.runs.listing import as_json, describe, find_run, list_runs
from pipeline.train.folder import RunFolder, why_no_run


@pytest.fixture
def make_run(tmp_path):
    return RunMaker(tmp_path)


def rows(below):
    return {line.split()[0]: line for line in describe(list_runs(below), below).splitlines()}


def test_runs_of_one_network_are_told_apart_by_the_settings_that_differ(make_run, tmp_path):
    make_run("a", CIFAR | {"run.seed": 1, "data.threads": 2}, steps=50)
    make_run("b", CIFAR | {"run.seed": 2, "optim.base_lr": 0.2, "data.threads": 2}, steps=50)
    make_run("other", CIFAR | {"model.depth": 32, "run.seed": 3}, steps=50)
    found = rows(tmp_path)
    assert "  base_lr=0.1 seed=1  " in found["a"]
    assert "  base_lr=0.2 seed=2  " in found["b"]
    assert "seed" not in found["other"]  # the only one of its network
    differing = {run["run"]: run["differs_in"] for run in as_json(list_runs(tmp_path))["runs"]}
    assert differing["b"] == {"optim.base_lr": 0.2, "run.seed": 2}
    assert differing["other"] == {}


def test_what_has_no_effect_in_a_run_does_not_tell_it_apart(make_run, tmp_path):
    make_run("a", CIFAR | {"schedule.patience": 3}, steps=50)
    make_run("b", CIFAR | {"schedule.patience": 4}, steps=50)
    assert "patience" not in rows(tmp_path)["a"]


def test_runs_on_other_data_are_told_apart_by_these_alone(make_run, tmp_path):
    make_run("a", CIFAR | {"run.seed": 1}, steps=50)
    make_run("b", CIFAR | {"run.seed": 2}, steps=50)
    make_run("c", CIFAR | {"data.root": "photos", "schedule.epochs": 7.0}, steps=50)
    differing = {run["run"]: run["differs_in"] for run in as_json(list_runs(tmp_path))["runs"]}
    assert differing["a"] == {"data.root": "data/cifar-10", "run.seed": 1}
    assert differing["c"] == {"data.root": "photos"}


def test_of_many_differences_the_first_few_are_listed_and_the_rest_counted(make_run, tmp_path):
    more = {"optim.momentum": 0.8, "data.threads": 1, "run.log_every_steps": 7}
    make_run("a", CIFAR, steps=50)
    make_run("b", CIFAR | more | {"optim.base_lr": 0.3, "run.seed": 9}, steps=50)
    assert "base_lr=0.3 seed=9 momentum=0.8 threads=1 and 1 more" in rows(tmp_path)["b"]


def test_a_run_is_found_by_name_or_path_and_else_it_says_what_lists_them(make_run, tmp_path):
    for name in ("resnet-50", "deep/resnet-152"):
        make_run(name, CIFAR, steps=50)
    assert find_run("deep/resnet-152", tmp_path) == tmp_path / "deep" / "resnet-152"
    assert find_run(str(tmp_path / "resnet-50"), tmp_path) == tmp_path / "resnet-50"
    for name, below in (("vgg", tmp_path), ("deep", tmp_path / "deep")):
        lists = rf"; python -m pipeline.runs {below} lists those there are"
        with pytest.raises(ConfigError, match=rf"there is no run {name} below {tmp_path}/{lists}"):
            find_run(name, tmp_path)
    with pytest.raises(ConfigError, match="there is no run demo below .*/nowhere/; "):
        find_run("demo", tmp_path / "nowhere")
    deep = rf"there is no run vgg below {tmp_path}/deep/; .* {tmp_path}/deep lists those"
    for name, below in (("deep/vgg", tmp_path), (f"{tmp_path}/deep/vgg", tmp_path / "runs")):
        with pytest.raises(ConfigError, match=deep):
            find_run(name, below)


def test_suggested_commands_are_quoted_for_a_shell(tmp_path):
    below = tmp_path / "my runs"
    RunMaker(below)("a", CIFAR)
    wanted = f"{below} is no run but holds 1 of them; give '{below}'/*/"
    assert why_no_run(RunFolder(below)) == wanted
    with pytest.raises(ConfigError) as error:
        find_run("b", below)
    assert str(error.value).endswith(f"python -m pipeline.runs '{below}' lists those there are")
    with pytest.raises(ConfigError, match="did you mean --config 'my file.yaml'"):
        load_config(["my file.yaml"])
