"""`benchmark norm` on a CPU, and its sums over a network on numbers whose results are known."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import pytest
import torch

from pipeline.benchmark import norm
from pipeline.benchmark.__main__ import main
from pipeline.benchmark.network import NormCase, network, norm_bytes
from pipeline.benchmark.norm import in_seconds
from pipeline.benchmark.options import NormOptions
from pipeline.benchmark.result import Result, Spread

TINY = {"device": "cpu", "batch": 2, "pixels": 32, "rounds": 2}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, str]:
    """The JSON of a run of both networks, what it says, and what a terminal shows meanwhile."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("norm") / "norm.json"
    argv = [f"--{name}={value}" for name, value in TINY.items()]
    with redirect_stdout(io.StringIO()) as said, redirect_stderr(Terminal()) as shown:
        main(["norm", *argv, "--depths=50,152", "--amps=bf16", f"--json={path}"])
    return json.loads(path.read_text()), said.getvalue(), shown.getvalue()


def test_every_shape_is_there_once_with_the_counts_of_both_networks(tiny):
    found, said, _ = tiny
    shapes = found["raw"]["shapes"]
    norms = {depth: network(depth, 32).norms for depth in (50, 152)}
    assert len(shapes) == len(norms[50]) == 17
    for shape in shapes:
        case = NormCase(shape["side"], shape["channels"], shape["kind"], shape["forked"])
        counts = {f"resnet{depth}": norms[depth][case] for depth in norms}
        assert shape["layers"] == counts and all(counts.values())
        eager = shape["backends"]["eager"]
        moved = (eager["forward_bytes"], eager["backward_bytes"])
        assert moved == norm_bytes("eager", case, 2, 2)
        share = eager["forward_bytes"] / eager["forward_sec"]["median"]
        share /= shape["copy_bytes_per_sec"]["median"]
        assert eager["forward_share_of_copy"] == pytest.approx(share)
        assert f"\n{case} bf16 " in said


def test_what_can_run_and_what_cannot_is_said_and_shown(tiny):
    found, said, shown = tiny
    assert set(found["ratios"]) == {"eager_of_copy_resnet50_bf16", "eager_of_copy_resnet152_bf16"}
    assert set(found["raw"]["not_run"]) == {"triton bf16", "apex bf16"}
    assert "bf16 reference: can run here" in said
    assert "bf16 triton: its kernels need an NVIDIA GPU" in said
    assert "set --device=cuda" in said and "run.device" not in said
    assert "\x1b[Kmeasuring: norm bf16, shape 17 of 17: " in shown
    assert shown.endswith("\r\x1b[K")


def test_after_the_time_limit_shapes_are_named_not_measured():
    saved: list[Result] = []
    found = norm.run(NormOptions(**TINY, depths="50", amps="fp16", limit_sec=-1.0), saved.append)
    assert "shapes" not in found.figures and not found.ratios and not saved
    assert "time limit of -1 s" in found.figures["not_run"]["1x1x512 plain fp16"]


def made(case: NormCase, images: int, eager: float, triton: float) -> norm.Measured:
    """Both backends at constant speed over two rounds, the second of a machine half as fast."""

    def timing(both: float) -> norm.Timing:
        return norm.Timing(Spread((both / 4, both / 2)), Spread((both, 2 * both)), (100.0, 300.0))

    timings = {"reference": timing(eager), "triton": timing(triton)}
    return norm.Measured(case, images, Spread((1000.0, 1000.0)), timings)


def test_sums_over_a_network_are_weighted_by_its_layers_and_per_image():
    a, b = NormCase(1, 8, "plain", False), NormCase(1, 16, "plain", False)
    measured = [made(a, 1, eager=3.0, triton=1.0), made(b, 2, eager=4.0, triton=4.0)]
    ratios = norm.network_ratios(measured, {a: 2, b: 3}, "net")
    # Seconds per image: eager 2 * 3 + 3 * 2, triton 2 * 1 + 3 * 2.
    assert ratios["triton_vs_eager_net"].rounds == (12 / 8, 12 / 8)
    # 400 bytes take 0.4 s at the copy's speed; the median round takes 1.5 times the first.
    assert ratios["triton_of_copy_net"] == pytest.approx((2 * 0.4 + 3 * 0.2) / (1.5 * 8))
    del measured[0].timings["triton"]
    assert set(norm.network_ratios(measured, {a: 2, b: 3}, "net")) == {"eager_of_copy_net"}


def test_a_difference_within_noise_is_shown_as_such_and_has_no_share():
    case, result = NormCase(1, 100, "plain", False), Result("norm", {}, figures={})
    one = made(case, 1, eager=4.0, triton=4.0)
    for backend, both in (("reference", 0.5), ("triton", 1.05)):
        forward = Spread((1.0, 1.0))
        one.timings[backend] = norm.Timing(forward, Spread((both, 1.2)), (100.0, 300.0))
    norm._add_rows(result, one, "fp16", {50: 1})
    assert [row[4] for row in result.table] == ["< noise", "< noise"]
    assert [row[6] for row in result.table] == ["", ""]
    backends = result.figures["shapes"][0]["backends"]
    assert backends["eager"]["backward_share_of_copy"] is None
    assert result.ratios["worst_share_of_copy"] == pytest.approx(100 / 1000)


def test_the_worst_share_is_the_least_of_all_passes_and_kernels():
    case = NormCase(1, 100, "plain", False)
    result = Result("norm", {}, figures={})
    times = {"statistics": 1.0, "normalize": 1.0, "gradient_sums": 2.0, "input_gradients": 1.0}
    for both, slower in ((2.0, 1.0), (4.0, 3.0), (1.0, 2.0)):
        one = made(case, 1, 1.0, both)
        one.timings["triton"].kernels = {name: slower * t for name, t in times.items()}
        norm._add_rows(result, one, "fp16", {50: 1})
    # At both = 4 the medians are 1.5 s for 100 bytes and 4.5 s for 300; the copy: 1000 bytes/s.
    assert result.ratios["worst_share_of_copy"] == pytest.approx(100 / 1.5 / 1000)
    # gradient_sums read two activations of 100 channels in half precision, in at most 3 * 2 s.
    assert result.ratios["worst_kernel_share_of_copy"] == pytest.approx(400 / 6 / 1000)
    kernels = result.figures["shapes"][0]["backends"]["triton"]["kernels"]
    assert kernels["normalize"] == {"sec": 1.0, "bytes": 400.0, "share_of_copy": 0.4}


def test_kernels_are_found_by_name_and_counted_per_call():
    names = ("statistics", "finish_statistics", "normalize", "gradient_sums",
             "finish_gradient_sums", "input_gradients")  # fmt: skip
    seen = {name: 4e6 * (i + 1) for i, name in enumerate(names)} | {"void other_kernel": 1.0}
    found = in_seconds(seen, calls=4)
    assert found == {name: i + 1.0 for i, name in enumerate(names)}
    del seen["normalize"]
    assert in_seconds(seen, calls=4) == "the profiler saw no kernel called normalize"
