"""The table of `benchmark step`: its rows, its ratios, and what does not run or not fit."""

from __future__ import annotations

import pytest
import torch

from pipeline.benchmark import step
from pipeline.benchmark.network import network, roofline
from pipeline.benchmark.options import StepOptions
from pipeline.benchmark.plain import PlainTraining, Setting, train_setting
from pipeline.benchmark.result import Result, Spread
from pipeline.benchmark.step import Comparison, Limits, add_rows, compare, settings

CPU = torch.device("cpu")
TINY = StepOptions(
    device="cpu", depths="18", amps="bf16", sides="eager", batch=4, pixels=32,
    table_rounds=1, table_steps=1,
)  # fmt: skip
EAGER = Setting(18, "bf16", "eager", 32)


pytestmark = pytest.mark.usefixtures("one_thread")


def empty() -> Result:
    return Result("step", {"batch": 256}, figures={"not_run": {}, "networks": {}})


def test_eager_comes_before_every_other_side_and_compiling_after_it():
    found = [setting.name for setting in settings(StepOptions(depths="50,152", amps="fp16"))]
    assert found == [
        *(f"{side}_resnet50_fp16" for side in ("eager", "triton", "apex")),
        *(f"{side}_resnet152_fp16" for side in ("eager", "triton", "apex")),
        *("compile_resnet50_fp16", "compile_resnet152_fp16"),
    ]


def test_a_row_has_ratios_to_eager_and_the_share_of_its_own_batchs_roofline():
    net, limits = network(50, 224), Limits(4.3e12, {"fp16": 790e12})
    speeds = {
        "eager": Spread((2000.0, 1000.0)),
        "plain": Spread((3000.0, 1500.0)),
        "graph": Spread((4000.0, 2000.0)),
    }
    result = empty()
    setting = Setting(50, "fp16", "triton", 224)
    add_rows(result, setting, Comparison(128, speeds, 7.0), net, limits)
    values = {name: result.ratio_value(name) for name in result.ratios}
    bound = roofline(net, "fused", 128, 4.3e12, 790e12)
    assert values == pytest.approx(
        {
            "triton_vs_eager_resnet50_fp16": 1.5,
            "triton_resnet50_fp16_of_roofline": 2250 / bound,
            "triton_graph_vs_eager_resnet50_fp16": 2.0,
            "triton_graph_vs_plain_resnet50_fp16": 4 / 3,
            "triton_graph_resnet50_fp16_of_roofline": 3000 / bound,
        }
    )
    assert result.table[0][:5] == (
        "triton_resnet50_fp16", "128", "2250", "1875 .. 2625", "1.500",
    )  # fmt: skip
    found = result.figures["networks"]["triton_resnet50_fp16"]
    assert (found["batch"], found["batch_asked"]) == (128, 256)
    assert not result.figures["not_run"]


def test_eager_is_compared_with_itself_as_a_graph_only():
    net, limits = network(50, 32), Limits(1e9, {"bf16": 1e9})
    speeds = {"plain": Spread((10.0,)), "graph": Spread((20.0,))}
    result = empty()
    add_rows(result, Setting(50, "bf16", "eager", 32), Comparison(2, speeds, None), net, limits)
    assert {name for name in result.ratios if "_vs_" in name} == {
        "eager_graph_vs_eager_resnet50_bf16",
        "eager_graph_vs_plain_resnet50_bf16",
    }
    assert result.ratio_value("eager_graph_vs_eager_resnet50_bf16") == 2.0


def test_half_the_batch_is_taken_until_it_fits(monkeypatch):
    def small(setting: Setting, images: int, device: torch.device) -> PlainTraining:
        if images > 2:
            # As a failed capture reports it: from another error.
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            except RuntimeError as error:
                raise RuntimeError("capture failed") from error
        return train_setting(setting, images, device)

    monkeypatch.setattr(step, "train_setting", small)
    found = compare(EAGER, TINY, CPU)
    assert found.images == 2 and found.loss is not None
    assert found.not_run == {"graph": "CUDA graphs need an NVIDIA GPU"}


def test_a_side_that_fails_is_named_and_the_others_are_measured(monkeypatch):
    def broken(setting: Setting, images: int, device: torch.device) -> PlainTraining:
        if setting.side == "compile":
            raise RuntimeError("no compiler\nmore")
        return train_setting(setting, images, device)

    monkeypatch.setattr(step, "train_setting", broken)
    saved: list[int] = []
    options = StepOptions(**vars(TINY) | {"sides": "compile,eager,triton", "parts": "table"})
    result = step.run(options, lambda so_far: saved.append(len(so_far.table)))
    assert saved == [3, 5, 7]  # a head, and two rows for each side
    assert set(result.figures["not_run"]) == {
        f"{side}_resnet18_bf16"
        for side in ("eager_graph", "triton", "triton_graph", "compile", "compile_graph")
    }
    assert result.figures["not_run"]["compile_resnet18_bf16"] == "RuntimeError: no compiler"
    assert "NVIDIA GPU" in result.figures["not_run"]["triton_graph_resnet18_bf16"]
    assert list(result.spreads) == ["eager_resnet18_bf16_images_per_sec"]
    assert list(result.ratios) == ["eager_resnet18_bf16_of_roofline"]
    assert result.figures["copy_gb_per_sec"] > 0
    assert "compile_resnet18_bf16: not run: RuntimeError: no compiler" in result.text()


def test_after_the_time_limit_rows_are_named_not_measured():
    result = step.run(StepOptions(**vars(TINY) | {"limit_sec": -1.0, "parts": "table"}))
    assert "time limit of -1 s" in result.figures["not_run"]["eager_resnet18_bf16"]
    assert not result.spreads


def test_a_step_moves_parameters_and_statistics_in_fp16_too():
    # Smaller ones leave two values per channel, whose gradients overflow.
    training = train_setting(Setting(18, "fp16", "eager", 64), 2, CPU)
    before = [tensor.clone() for tensor in training.model.state_dict().values()]
    training.step()
    after = training.model.state_dict().values()
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert training.loss.isfinite()


@pytest.mark.slow
def test_the_compiled_step_is_measured_against_eager():
    found = compare(Setting(18, "bf16", "compile", 32), TINY, CPU)
    assert set(found.images_per_sec) == {"eager", "plain"}
    torch.compiler.reset()
