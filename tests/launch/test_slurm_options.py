"""The launcher's own options among the program's."""

import pytest

from launch.slurm.options import LaunchOptions, require_engine, split
from pipeline.config import ConfigError


def test_options_of_the_launcher_may_stand_anywhere():
    argv = ["train", "--run.name=x", "--launch.interface=ib0", "--launch.doctor=false"]
    options, program = split(argv)
    assert options == LaunchOptions(interface="ib0", doctor=False)
    assert program.module_and_options == ["pipeline.train", "--run.name=x"]
    assert split(["train", "--launch.engine=torch"])[0].engine == "torch"
    assert str(program.run_dir) == "runs/x"


def test_staged_data_are_read_from_where_they_were_copied_to():
    _, program = split(["train", "--data.root=/far", "--launch.stage=/near"])
    assert program.staging("/near")[-5:] == ["stage", "--from", "/far", "--to", "/near"]
    assert split(["train", *program.reading_from("/near").options])[1].config.data.root == "/near"


def test_data_are_prepared_by_one_process():
    assert not split(["prepare", "demo"])[1].on_every_rank
    assert split(["evaluate", "--checkpoint", "x.pt"])[1].on_every_rank


@pytest.mark.parametrize(
    "argv, on_cpu",
    [
        (["train"], False),
        (["train", "--run.device=cpu"], True),
        (["evaluate", "--run.device=cpu"], True),
        (["evaluate", "--run.device", "cpu"], True),
    ],
)
def test_a_program_told_to_leave_gpus_alone_is_known(argv, on_cpu):
    assert split(argv)[1].on_cpu == on_cpu


def test_a_setting_without_its_value_is_named_in_one_sentence():
    _, program = split(["evaluate", "--checkpoint", "x.pt", "--run.device"])
    with pytest.raises(ConfigError, match="^--run.device needs a value$"):
        _ = program.on_cpu


def test_the_doctor_gets_what_it_looks_at_of_an_evaluation():
    _, program = split(["evaluate", "--checkpoint", "x.pt", "--data.root", "/d", "--optim.amp=off"])
    assert program.doctor_settings == ["--data.root=/d", "--optim.amp=off"]


def test_an_engine_that_is_not_installed_is_refused_with_both_ways_out(monkeypatch):
    require_engine("horovod")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_engine("torch")
    message = "Horovod is not installed; set --launch.engine=torch, or build it with python -m"
    with pytest.raises(ConfigError, match=message):
        require_engine("horovod")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["train", "--launch.interfce=ib0"], "--launch.interfce; did you mean --launch.interface"),
        (["train", "--launch.doctor=perhaps"], "--launch.doctor perhaps must be true or false"),
        (["train", "--launch.engine=mpi"], "--launch.engine mpi must be one of horovod, torch"),
        (["train", "--launch.interface"], "--launch.interface: expected one argument"),
        (["train", "--launch.stage="], "--launch.stage is empty; it must be a path or null"),
        (["evaluate", "--launch.stage=/scratch"], "--launch.stage=/scratch goes with train only"),
        (["trian"], "launch.slurm runs train, evaluate, prepare, not trian"),
        ([], "launch.slurm runs train, evaluate, prepare, not nothing"),
        (["train", "--model.detph=50"], "no setting --model.detph; did you mean --model.depth"),
    ],
)
def test_wrong_options_are_refused_with_the_nearest(argv, message):
    with pytest.raises(ConfigError, match=message):
        split(argv)
