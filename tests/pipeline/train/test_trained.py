"""The network of a checkpoint, as all who use one read it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from weight_files import CIFAR_8, CLASSES, RESNET_18, SMALL, with_image, write_checkpoint

from pipeline.config import ConfigError, DataConfig
from pipeline.data.normalisation import IMAGENET
from pipeline.model.network import network_name
from pipeline.train.checkpoint import read, read_verified, write_atomically

CPU = torch.device("cpu")


def test_a_checkpoint_is_read_as_the_network_and_what_it_was_trained_with(tmp_path):
    normalisation = with_image(32)
    path = write_checkpoint(tmp_path / "a.pt", normalisation=normalisation)
    trained = read(path)
    assert (trained.path, trained.step, trained.classes) == (path, 7, CLASSES)
    assert (trained.config.model, trained.config.data) == (CIFAR_8, SMALL)
    assert trained.normalisation.digest == normalisation.digest != IMAGENET.digest
    model = trained.build(CPU)
    assert not model.training
    built, wanted = model.state_dict(), read_verified(path)["model"]
    assert all(torch.equal(built[name], wanted[name]) for name in wanted)


def test_a_checkpoint_without_newer_settings_is_read_with_their_defaults(tmp_path):
    path = write_checkpoint(tmp_path / "a.pt", RESNET_18)
    content = read_verified(path)
    content["config"] = "model: {depth: 18, zero_init_last_norm: false}\ndata: {image_size: 32}\n"
    write_atomically(path, content)
    trained = read(path)
    assert trained.config.data == DataConfig(image_size=32)
    assert network_name(trained.config.model) == "ResNet-18 B"
    assert not trained.build(CPU).training


def test_a_checkpoint_from_before_images_were_excluded_has_none(tmp_path):
    path = write_checkpoint(tmp_path / "a.pt")
    content = read_verified(path)
    del content["excluded"]
    write_atomically(path, content)
    assert read(path).excluded == {"train": [], "val": []}


def test_a_file_with_our_format_and_without_a_network_is_refused(tmp_path):
    write_atomically(tmp_path / "a.pt", {"format": 1, "step": 3, "model": {}})
    wrong = "a.pt has no config, classes, normalisation, world_size, fingerprint: it was not writ"
    with pytest.raises(ValueError, match=wrong):
        read(tmp_path / "a.pt")


def test_settings_that_were_given_take_the_place_of_the_stored_ones(tmp_path):
    trained = read(write_checkpoint(tmp_path / "a.pt"))
    given = {"data.root": "elsewhere", "data.threads": None}  # null is a value too
    found = trained.configured(given, [*given, "data.image_size"])
    data = dataclasses.replace(SMALL, root="elsewhere", threads=None)
    assert found == dataclasses.replace(trained.config, data=data)
    with pytest.raises(ConfigError, match="output=float16 needs mixed precision"):
        trained.configured({"data.output": "float16"}, ["data.output"])


def test_norm_layers_are_those_that_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    trained = read(write_checkpoint(tmp_path / "a.pt"))
    kernels = dataclasses.replace(trained.config, model=dataclasses.replace(CIFAR_8, norm="triton"))
    with pytest.raises(ValueError, match="model.norm=triton cannot run here"):
        trained.build(CPU, kernels)
    dataclasses.replace(trained, config=kernels).build(CPU)  # the reference runs everywhere


@pytest.mark.parametrize(
    ("asked", "kind", "said"),
    [(None, "ema", " (EMA of the weights)"), ("ema", "ema", " (EMA of the weights)"),
     ("raw", "raw", " (raw weights)")],
)  # fmt: skip
def test_the_average_of_the_weights_is_taken_where_there_is_one(tmp_path, asked, kind, said):
    path = write_checkpoint(tmp_path / "a.pt", ema=True)
    trained, content = read(path, asked), read_verified(path)
    assert (trained.kind, trained.said_kind) == (kind, said)
    wanted = (content["ema"] if kind == "ema" else content)["model"]
    assert torch.equal(trained.weights["fc.weight"], wanted["fc.weight"])
    assert torch.equal(trained.build(CPU).state_dict()["fc.weight"], wanted["fc.weight"])


def test_without_an_average_there_is_no_choice_and_asking_for_it_is_refused(tmp_path):
    path = write_checkpoint(tmp_path / "a.pt")
    assert {(read(path, kind).kind, read(path, kind).said_kind) for kind in (None, "raw")} == {
        (None, "")
    }
    with pytest.raises(ValueError, match=f"^checkpoint {path} has no EMA of the weights, as"):
        read(path, "ema")
