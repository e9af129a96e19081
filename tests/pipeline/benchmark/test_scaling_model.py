"""The scaling model against closed forms, and what `benchmark predict` makes of it."""

import json
import math

import pytest

from pipeline.benchmark.__main__ import parse
from pipeline.benchmark.predict import check, gradient_schedule, run
from pipeline.benchmark.rank_options import PredictOptions
from pipeline.benchmark.result import write_json
from pipeline.benchmark.scaling_model import (
    Cluster,
    Cost,
    Gradient,
    at_ranks,
    expected_maximum,
    exposed_sec,
    fit_line,
    mean_exposed_sec,
    predict,
    ring_cost,
    two_level_cost,
    without_overlap,
)
from pipeline.config import ConfigError

FREE = Cost(0.0, 0.0)
LAYERS = [Gradient(0.25, 100), Gradient(0.5, 100, 2), Gradient(1.0, 200)]
CLUSTER = Cluster(8, 400e9, 50e9, 3e-6, 10e-6, 1e-3, 5e-6)


def test_a_network_of_infinite_speed_costs_nothing():
    assert predict(512, 0.1, LAYERS, FREE).efficiency == 1.0


def test_one_rank_communicates_with_nobody():
    assert predict(1, 0.1, LAYERS, Cost(1.0, 1.0), jitter_sec=0.5).efficiency == 1.0


def test_without_overlap_all_gradients_follow_backward():
    cost = Cost(0.01, 1e-4, 0.002)
    wanted = 0.01 + 3 * 0.002 + 400 * 1e-4  # four tensors, 400 bytes
    assert exposed_sec(without_overlap(LAYERS), 1.0, cost) == pytest.approx(wanted)
    found = predict(4, 1.0, without_overlap(LAYERS), cost, jitter_sec=0.1)
    slowest = 0.1 * expected_maximum(4)
    assert found.efficiency == pytest.approx(1 / (1 + 0.01 + wanted + slowest))


def test_what_is_sent_while_backward_runs_is_hidden():
    # Ready at 0.25, 0.5 and 1: each is sent before the next is ready, the last after backward.
    assert exposed_sec(LAYERS, 1.0, Cost(0.0, 1e-3)) == pytest.approx(0.2)


def test_a_busy_network_sends_what_has_gathered_in_one_go():
    # 0.25 .. 0.65 the first; 0.65 .. 1.05 the second; 1.05 .. 1.75 the third.
    assert exposed_sec(LAYERS, 1.0, Cost(0.3, 1e-3)) == pytest.approx(0.3 + 0.2 + 0.05)
    two_at_once = [Gradient(0.1, 100), Gradient(0.2, 100), Gradient(0.3, 100)]
    # 0.1 .. 0.9 the first, then both others together, which takes 0.5 + 2 * 0.3.
    assert exposed_sec(two_at_once, 1.0, Cost(0.5, 3e-3)) == pytest.approx(0.9 + 1.1 - 1.0)


def test_a_faster_network_is_never_slower_when_latency_is_small():
    exposed = [mean_exposed_sec(LAYERS, 1.0, Cost(1e-3, per_byte)) for per_byte in (4e-3, 2e-3, 0)]
    assert exposed == sorted(exposed, reverse=True)
    assert exposed[-1] == pytest.approx(1e-3)


def test_a_ring_in_one_node():
    cost = ring_cost(8, CLUSTER)
    assert cost.latency_sec == pytest.approx(1e-3 + 14 * 3e-6)
    assert cost.seconds(400_000_000) == pytest.approx(1e-3 + 42e-6 + 1.75 * 1e-3)
    assert cost == two_level_cost(8, CLUSTER)


def test_a_ring_over_nodes_goes_at_the_pace_of_the_links():
    cost = ring_cost(64, CLUSTER)
    assert cost.sec_per_byte == pytest.approx(2 * 63 / 64 / 50e9)
    assert cost.latency_sec == pytest.approx(1e-3 + 2 * 56 * 3e-6 + 2 * 8 * 10e-6)


def test_two_levels_send_each_share_over_the_links_once():
    cost = two_level_cost(64, CLUSTER)
    assert cost.sec_per_byte == pytest.approx(2 * 7 / 8 / 400e9 + 2 * 7 / 8 / 50e9)
    assert cost.latency_sec == pytest.approx(1e-3 + 14 * 3e-6 + 2 * 3 * 10e-6)
    assert cost.tensor_sec == 5e-6


def test_half_a_node_more_is_refused():
    with pytest.raises(ValueError, match="12 GPUs must be whole nodes of 8"):
        ring_cost(12, CLUSTER)


def test_a_measured_cost_at_other_ranks_keeps_the_bandwidth_of_the_links():
    assert at_ranks(Cost(0.01, 1e-9, 1e-5), 2, 2) == Cost(0.01, 1e-9, 1e-5)
    assert at_ranks(Cost(0.01, 1e-9), 2, 4).sec_per_byte == pytest.approx(1.5e-9)


def test_the_slowest_of_many_normal_times():
    assert expected_maximum(1) == pytest.approx(0.0, abs=1e-12)
    assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi), rel=0.05)  # exact value
    assert expected_maximum(10) == pytest.approx(1.53875, rel=0.01)  # Tippett 1925
    assert expected_maximum(100) == pytest.approx(2.50759, rel=0.01)


def test_a_line_through_exact_times_is_found_again():
    sizes = [4096, 65536, 2**20, 2**26]
    latency, per_byte = fit_line(sizes, [5e-3 + size * 2e-9 for size in sizes])
    assert latency == pytest.approx(5e-3) and per_byte == pytest.approx(2e-9)


def test_a_line_is_never_below_zero():
    assert fit_line([1, 2], [0.2, 0.1])[1] == 0.0
    latency, per_byte = fit_line([1, 2, 4], [0.5, 2.0, 8.0])
    assert latency == 0.0 and per_byte > 0
    assert fit_line([8], [0.5]) == (0.5, 0.0)


def test_gradients_come_from_the_last_layer_to_the_first():
    import torch

    from pipeline.config import ModelConfig
    from pipeline.model.resnet import build_network

    with torch.device("meta"):
        model = build_network(ModelConfig(depth=50), 1000)
    schedule = gradient_schedule(model, 224, 4)
    assert sum(gradient.size for gradient in schedule) == 4 * 25_557_032  # torchvision's count
    assert sum(gradient.tensors for gradient in schedule) == 161
    assert [g.ready for g in schedule] == sorted(g.ready for g in schedule)
    assert schedule[0].size == 4 * (2048 * 1000 + 1000)  # fc
    assert schedule[0].ready < 0.01 and schedule[-1].ready == 1.0
    half = sum(g.size for g in schedule if g.ready < 0.3)
    assert half > 0.5 * 4 * 25_557_032, "most weights are in the last stage"


GIVEN = {
    "step_ms": 30.0,
    "jitter_ms": 0.0,
    "latency_ms": 1.0,
    "tensor_us": 0.0,
    "node_gbyte": 350.0,
}


def test_predict_needs_no_files_when_all_is_given():
    result = run(PredictOptions(**GIVEN))
    rows = result.figures["predicted"]
    assert [(r["gpus"], r["link_gbit"]) for r in rows] == [
        (8, None), (64, 100), (64, 400), (64, 3200), (512, 100), (512, 400), (512, 3200),
    ]  # fmt: skip
    assert all(0 < r["efficiency"] < 1 for r in rows)
    # In one fast node there is nothing to gain: two cycles cost what the overlap saves.
    assert all(r["efficiency_without_overlap"] < r["efficiency"] for r in rows if r["link_gbit"])
    assert rows[1]["efficiency"] < rows[2]["efficiency"]
    assert "predicted: GPUs" in result.text()
    half = run(PredictOptions(**GIVEN, dtype="fp16"))
    assert half.figures["gradient_bytes"] * 2 == result.figures["gradient_bytes"]


def measured(tmp_path):
    """JSON files as the two benchmarks write them: a line of 1 ms + 1 ns a byte, 2 ranks."""
    fit = {"latency_sec": 1e-3, "sec_per_byte": 1e-9, "bus_bytes_per_sec": 1e9, "tensor_sec": 0.0}
    allreduce = {
        "benchmark": "allreduce",
        "settings": {"device": "cpu", "ranks": 2},
        "raw": {"fit": {"fp32": fit}},
    }
    sides = {"alone": 0.5, "apart_2": 0.5, "weak_2": 0.6}
    raw = {f"{side}_step_sec": {"median": sec} for side, sec in sides.items()}
    raw |= {f"{side}_forward_backward_sec": {"median": 0.45} for side in sides}
    raw |= {f"{side}_jitter_sec": {"median": 0.0} for side in sides}
    raw |= {"weak_2_exposed_communication_share": {"median": 0.1}}
    raw |= {"weak_2_agreement_share": {"median": 0.05}}
    scale = {
        "benchmark": "scale",
        "settings": {"device": "cpu", "depth": 18, "size": 64},
        "ratios": {"weak_scaling_2": 0.8, "weak_scaling_2_by_cpu_time": 0.9},
        "raw": raw,
    }
    for content in (allreduce, scale):
        write_json(tmp_path / f"{content['benchmark']}.json", content)
    return allreduce, scale


def test_the_prediction_is_checked_against_the_measured_rank_counts(tmp_path):
    measured(tmp_path)
    result = run(
        PredictOptions(
            allreduce=str(tmp_path / "allreduce.json"), scale=str(tmp_path / "scale.json"), depth=18
        )
    )
    inputs = result.settings["inputs"]
    assert inputs["step_sec"] == 0.5 and inputs["gpu_bytes_per_sec"] == pytest.approx(1e9)
    (found,) = result.figures["checks"]
    assert found["ranks"] == 2 and found["measured"] == 0.8
    assert found["measured_wait_sec"] == pytest.approx(0.15 * 0.6)
    assert found["predicted"] == pytest.approx(0.5 / (0.5 + found["predicted_wait_sec"]))
    # Almost all is sent while backward runs: two latencies and the first layer's bytes are left.
    assert 0.5 / 0.52 < found["predicted"] < 0.5 / 0.502
    ratio = result.ratios["predicted_vs_measured_weak_scaling_2"]
    assert ratio == found["predicted"] / 0.8


def test_two_devices_are_not_compared(tmp_path):
    allreduce, scale = measured(tmp_path)
    scale["settings"]["device"] = "cuda"
    with pytest.raises(ConfigError, match="--allreduce was measured on cpu and --scale on cuda"):
        check(allreduce, scale)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--step_ms is neither given nor measured; give it or --scale FILE"),
        (GIVEN | {"latency_ms": None}, "--latency_ms is neither given .* or --allreduce FILE"),
        (GIVEN | {"depth": 51}, "--depth=51"),
        (GIVEN | {"scale": "absent.json"}, "--scale absent.json cannot be read as JSON; write it"),
    ],
)
def test_what_is_missing_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        run(PredictOptions(**options))


def test_a_json_of_another_benchmark_is_refused(tmp_path):
    measured(tmp_path)
    with pytest.raises(ConfigError, match="is not the present JSON of that benchmark"):
        run(PredictOptions(**GIVEN, allreduce=str(tmp_path / "scale.json")))


def test_another_depth_than_measured_needs_a_step_of_its_own(tmp_path):
    measured(tmp_path)
    paths = {name: str(tmp_path / f"{name}.json") for name in ("allreduce", "scale")}
    with pytest.raises(ConfigError, match="--scale measured depth 18 and --depth=50; give --step"):
        run(PredictOptions(**paths))
    with pytest.raises(ConfigError, match="--allreduce holds fp32, not fp16"):
        run(PredictOptions(**paths, depth=18, dtype="fp16"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--gpus=8,12", "--gpus=8,12: 12 must be whole nodes of --gpus_per_node=8"),
        ("--gpus=0", "--gpus=0 must be whole numbers of at least 1 with commas between"),
        ("--link_efficiency=1.5", "--link_efficiency=1.5 must be above 0 and at most 1"),
        ("--step_ms=0", "--step_ms=0 must be above 0"),
        ("--node_us=-1", "--node_us=-1 must not be below 0"),
    ],
)
def test_wrong_settings_of_a_cluster_are_refused(argument, message):
    with pytest.raises(ConfigError) as caught:
        parse(["predict", argument])
    assert message in str(caught.value)


def test_the_command_writes_its_prediction(tmp_path):
    from pipeline.benchmark.__main__ import main

    path = tmp_path / "predict.json"
    main(["predict", "--json", str(path), *(f"--{name}={value}" for name, value in GIVEN.items())])
    found = json.loads(path.read_text())
    assert found["settings"]["inputs"]["step_sec"] == 0.03
    assert len(found["raw"]["predicted"]) == 7
