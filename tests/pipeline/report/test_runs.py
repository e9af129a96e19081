"""Reading what runs left behind."""

import json
import logging
import shutil

import pytest
from made_runs import CIFAR, write_evaluation

from pipeline.report.runs import find_runs, read_run, read_runs


def test_a_run_is_read_with_its_versions_settings_and_lines(make_run):
    folder = make_run("a", CIFAR | {"model.residual": False, "run.seed": 3}, steps=800)
    run = read_run(folder)
    assert (run.name, run.network.label) == ("a", "CIFAR plain-20")
    assert (run.step, run.finished) == (800, True)
    assert run.start["versions"] == {"torch": "2.13.0", "commit": "abc1234"}
    assert run.settings["run.seed"] == 3
    assert [len(run.events(e)) for e in ("train", "val", "done")] == [16, 3, 1]


def test_settings_that_a_run_did_not_know_have_their_defaults(make_run):
    folder = make_run("old", {"model.depth": 34})
    kept = [
        line for line in (folder / "config.yaml").read_text().splitlines()
        if not line.strip().startswith(("family:", "residual:", "shortcut:", "held_out:"))
    ]  # fmt: skip
    (folder / "config.yaml").write_text("\n".join(kept))
    assert read_run(folder).network.label == "ResNet-34 B"


def test_a_line_cut_by_a_kill_is_left_out_with_a_warning(make_run, caplog):
    folder = make_run("cut", CIFAR, steps=800)
    path = folder / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[: whole.index('{"event": "done"') + 30])
    with caplog.at_level(logging.WARNING, logger="trainyard"):
        run = read_run(folder)
    assert f"a line of {path} is cut or no event of a run, and left out" in caplog.text
    assert not run.finished
    assert run.step == 800


def test_runs_come_once_and_by_network(make_run):
    folders = [
        make_run("b", CIFAR | {"model.depth": 56}, steps=800),
        make_run("a", CIFAR, steps=800),
    ]
    folders.append(folders[0] / ".." / "b")
    assert [run.name for run in read_runs(folders)] == ["a", "b"]


def test_every_run_below_a_folder_is_found(make_run):
    folders = {make_run("a", CIFAR, steps=800), make_run("deeper/b", CIFAR, steps=800)}
    assert set(find_runs(make_run.below)) == folders


def test_below_a_folder_without_a_run_it_says_how_to_get_one(tmp_path):
    with pytest.raises(ValueError, match=f"there is no run below {tmp_path}/ .*train one"):
        find_runs(tmp_path)


def test_a_configuration_that_cannot_be_read_is_named(make_run):
    folder = make_run("a", CIFAR, steps=800)
    (folder / "config.yaml").write_text("model: [depth")
    with pytest.raises(ValueError, match="a/config.yaml is not YAML .*start the run again"):
        read_run(folder)
    (folder / "config.yaml").write_text("")
    with pytest.raises(ValueError, match="a/config.yaml holds no resolved settings"):
        read_run(folder)


@pytest.mark.parametrize(
    ("settings", "size", "data_set", "label"),
    [
        (CIFAR, {}, "cifar-10", "CIFAR-10"),
        (CIFAR | {"data.held_out": 5000}, {"train": 45_000, "val": 5000}, "cifar-10",
         "CIFAR-10, 5,000 images held out"),
        (CIFAR, {"val": 2000}, None, "data/cifar-10"),
        (CIFAR, {"train": 10_000}, None, "data/cifar-10"),
        ({"data.root": "data/demo"}, {}, None, "data/demo"),
        ({"data.dataset": "imagenet-1k"}, {"val": 50_000}, "imagenet-1k", "ImageNet-1k"),
    ],
)  # fmt: skip
def test_cifar_10_is_known_by_its_images(make_run, settings, size, data_set, label):
    run = read_run(make_run("a", settings, steps=400, **size))
    assert (run.data_set, run.data_label) == (data_set, label)


def test_an_evaluation_is_read_as_errors(make_run):
    folder = make_run("a", {"data.dataset": "imagenet-1k"}, steps=800, val=50_000)
    write_evaluation(
        folder, "scales", protocol="multi-scale", scales=[224, 256], ensemble=["a", "b"]
    )
    stored = read_run(folder).evaluations[0]
    assert (stored.protocol, stored.scales, stored.ensemble) == ("multi-scale", (224, 256), 2)
    assert (stored.top1, stored.top5) == pytest.approx((25.0, 8.0))


def test_an_evaluation_that_cannot_be_read_is_named(make_run):
    folder = make_run("a", CIFAR, steps=800)
    path = folder / "evaluate-x.json"
    write_evaluation(folder, "x")
    content = json.loads(path.read_text())
    del content["top1"]
    for text, said in [(json.dumps(content), "it has no 'top1'"), ("{", ""), ("[]", "")]:
        path.write_text(text)
        with pytest.raises(ValueError, match=f"evaluate-x.json is no result of .*{said}.*remove"):
            read_run(folder)


def test_a_validation_that_was_evaluated_again_counts_once(make_run):
    folder = make_run("a", CIFAR, steps=800)
    (validation,) = read_run(folder).evaluations
    assert (validation.protocol, validation.step, validation.in_training) == ("1-crop", 800, True)
    assert validation.top1 == pytest.approx(11.0, abs=0.1)
    write_evaluation(folder, "other", protocol="1-crop", mirror=False, images=10_000, step=400)
    assert len(read_run(folder).evaluations) == 2
    shutil.rmtree(folder)
    make_run("a", CIFAR, steps=800)
    write_evaluation(folder, "same", protocol="1-crop", mirror=False, images=10_000, step=800)
    (again,) = read_run(folder).evaluations
    assert not again.in_training
