"""The scaling model against closed forms, and what `benchmark predict` makes of it."""

import json
import math
from pathlib import Path

import pytest

from pipeline.benchmark.predict import gradient_schedule, run
from pipeline.benchmark.rank_options import PredictOptions
from pipeline.benchmark.result import write_json
from pipeline.benchmark.scaling_model import (
    Cluster,
    Cost,
    Gradient,
    Step,
    at_ranks,
    decision_sec,
    expected_maximum,
    exposed_sec,
    fit_line,
    in_buckets,
    mean_exposed_sec,
    predict,
    ring_cost,
    two_level_cost,
    without_overlap,
)
from pipeline.config import ConfigError

FREE, LATE = Cost(0.0, 0.0), Cost(0.01, 1e-4, 0.002)
LAYERS = [Gradient(0.25, 100), Gradient(0.5, 100, 2), Gradient(1.0, 200)]
CLUSTER = Cluster(8, 400e9, 50e9, 3e-6, 10e-6, 1e-3, 5e-6)


def test_infinite_speed_and_one_rank_alone_cost_nothing():
    assert predict(512, Step(0.1), LAYERS, FREE).efficiency == 1.0
    assert predict(1, Step(0.1, jitter_sec=0.5), LAYERS, Cost(1.0, 1.0), 9.0).efficiency == 1.0


@pytest.mark.parametrize(
    ("layers", "cost", "seconds"),
    [
        # Ready at 0.25, 0.5 and 1: each is sent before the next is ready, the last after backward.
        (LAYERS, Cost(0.0, 1e-3), 0.2),
        # 0.25 .. 0.65 the first; 0.65 .. 1.05 the second; 1.05 .. 1.75 the third.
        (LAYERS, Cost(0.3, 1e-3), 0.3 + 0.2 + 0.05),
        # 0.1 .. 0.9 the first, then both others in one go, which takes 0.5 + 2 * 0.3.
        ([Gradient(ready, 100) for ready in (0.1, 0.2, 0.3)], Cost(0.5, 3e-3), 0.9 + 1.1 - 1.0),
        # Four tensors, 400 bytes, all after backward.
        (without_overlap(LAYERS), LATE, 0.01 + 3 * 0.002 + 400 * 1e-4),
    ],
)
def test_what_is_sent_while_backward_runs_is_hidden(layers, cost, seconds):
    assert exposed_sec(layers, 1.0, cost) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("taken", "seconds"),
    [
        # Nothing; a half: while 0.4 s are sent, backward does 0.2 s of its own work.
        (0.0, 0.0),
        (0.5, 0.2),
        (1.0, 0.4),
        # Twice: it lasts 0.8 s in which backward stands still.
        (2.0, 0.8),
    ],
)
def test_what_is_hidden_takes_time_from_backward_on_the_same_cores(taken, seconds):
    early = [Gradient(0.25, 400)]
    assert exposed_sec(early, 1.0, Cost(0.0, 1e-3, taken_share=taken)) == pytest.approx(seconds)


def test_what_is_sent_after_backward_takes_nothing_from_it():
    cost = Cost(0.0, 1e-3, taken_share=0.5)
    assert exposed_sec([Gradient(1.0, 400)], 1.0, cost) == pytest.approx(0.4)
    # From 0.8 on: 0.4 s beside the last 0.2 s of backward, then 0.2 s alone.
    assert exposed_sec([Gradient(0.8, 600)], 1.0, cost) == pytest.approx(0.4)


def test_gradients_travel_in_buckets_that_are_ready_with_their_last():
    assert in_buckets(LAYERS, 150) == [Gradient(0.5, 200), Gradient(1.0, 200)]
    assert in_buckets(LAYERS, 1) == [Gradient(one.ready, one.size) for one in LAYERS]
    assert in_buckets(LAYERS, 10**6) == [Gradient(1.0, 400)]


def test_a_step_waits_for_the_gradients_and_the_slowest():
    found = predict(4, Step(1.0, jitter_sec=0.1), without_overlap(LAYERS), LATE, 0.1)
    waits = (0.01 + 3 * 0.002 + 400 * 1e-4) + 0.1 * expected_maximum(4)
    assert found.efficiency == pytest.approx(1 / (1 + waits))


def test_a_decision_costs_only_what_the_step_does_not_hide():
    step = Step(1.0, hiding_share=0.1)
    after = without_overlap(LAYERS)  # 0.056 s exposed, in which the decision is on its way too
    assert predict(4, step, after, LATE, 0.15).agreement_sec == 0.0
    assert predict(4, step, after, LATE, 0.2).agreement_sec == pytest.approx(0.2 - 0.156)


def test_a_decision_travels_in_rings():
    assert decision_sec(64, 2, 27e-6) == pytest.approx(6.8e-3, rel=0.01)
    assert decision_sec(64, 1, 27e-6, latency_sec=1e-3) == pytest.approx(4.4e-3, rel=0.01)
    assert decision_sec(1, 2, 1.0) == 0.0


def test_a_faster_network_is_never_slower_when_latency_is_small():
    exposed = [mean_exposed_sec(LAYERS, 1.0, Cost(1e-3, per_byte)) for per_byte in (4e-3, 2e-3, 0)]
    assert exposed == sorted(exposed, reverse=True)
    assert exposed[-1] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("make", "gpus", "hops_sec", "sec_per_byte"),
    [
        (ring_cost, 8, 14 * 3e-6, 2 * 7 / 8 / 400e9),
        (two_level_cost, 8, 14 * 3e-6, 2 * 7 / 8 / 400e9),
        # Over nodes a ring is as fast as the links; two levels send each share once.
        (ring_cost, 64, 2 * 56 * 3e-6 + 2 * 8 * 10e-6, 2 * 63 / 64 / 50e9),
        (two_level_cost, 64, 14 * 3e-6 + 2 * 3 * 10e-6, 2 * 7 / 8 / 400e9 + 2 * 7 / 8 / 50e9),
    ],
)
def test_an_allreduce_costs_its_hops_and_its_bytes(make, gpus, hops_sec, sec_per_byte):
    cost = make(gpus, CLUSTER)
    assert cost.latency_sec == pytest.approx(1e-3 + hops_sec)
    assert cost.sec_per_byte == pytest.approx(sec_per_byte)
    assert cost.seconds(10**9, 3) == pytest.approx(
        cost.latency_sec + 2 * 5e-6 + 10**9 * sec_per_byte
    )


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
    assert [g.ready for g in schedule] == sorted(g.ready for g in schedule)
    assert all(g.size >= 25 * 2**20 for g in schedule[:-1]) and len(schedule) == 4
    assert schedule[0].ready < 0.1 and schedule[-1].ready == 1.0
    half = sum(g.size for g in schedule if g.ready < 0.3)
    assert half > 0.5 * 4 * 25_557_032, "most weights are in the last stage"


GIVEN = {
    "step_ms": 30.0, "jitter_ms": 0.0, "latency_ms": 1.0, "tensor_us": 0.0, "node_gbyte": 350.0,
}  # fmt: skip


def test_predict_needs_no_files_when_all_is_given(benchmark):
    argv = [f"--{name}={value}" for name, value in GIVEN.items()]
    found, text = benchmark("predict", *argv)
    rows = found["raw"]["predicted"]
    assert [(r["gpus"], r["link_gbit"]) for r in rows] == [
        (8, None), (64, 100), (64, 400), (64, 3200), (512, 100), (512, 400), (512, 3200),
    ]  # fmt: skip
    assert all(0 < r["efficiency"] < 1 for r in rows)
    # In one fast node there is nothing to gain: two cycles cost what the overlap saves.
    assert all(r["efficiency_without_overlap"] < r["efficiency"] for r in rows[1:4])
    # 512 ranks decide in 56 ms by Horovod's two rings, in half of it by one; a step hides 20.
    assert [r["agreement_sec"] > 0 for r in rows] == [False] * 4 + [True] * 3
    by_torch = run(PredictOptions(**GIVEN, engine="torch")).figures["predicted"]
    assert by_torch[-1]["decision_sec"] - 1e-3 == (rows[-1]["decision_sec"] - 1e-3) / 2
    assert rows[1]["efficiency"] < rows[2]["efficiency"]
    assert found["settings"]["inputs"]["step_sec"] == 0.03
    assert "predicted: GPUs" in text
    half = run(PredictOptions(**GIVEN, dtype="fp16"))
    assert half.figures["gradient_bytes"] * 2 == found["raw"]["gradient_bytes"]


def measured(folder, device="cpu"):
    """The JSON files of the two benchmarks, by option: a line of 1 ms + 1 ns a byte, 2 ranks;
    `device` is that of scale."""
    fit = {
        "latency_sec": 1e-3, "sec_per_byte": 1e-9, "bus_bytes_per_sec": 1e9, "tensor_sec": 0.0,
        "taken_share": 2.0,
    }  # fmt: skip
    allreduce = {
        "benchmark": "allreduce",
        "settings": {"device": "cpu", "ranks": 2, "engine": "horovod"},
        "raw": {
            "fit": {"fp32": fit, "fixed": fit | {"sec_per_byte": 5e-10, "taken_share": 0.0}},
            "engine_share": 0.1,
        },
    }
    sides = {"alone": 0.5, "apart_2": 0.5, "weak_2": 0.6, "weak_2_horovod_fast": 0.6}
    raw = {f"{side}_step_sec": {"median": sec} for side, sec in sides.items()}
    raw |= {f"{side}_forward_backward_sec": {"median": 0.45} for side in sides}
    raw |= {f"{side}_jitter_sec": {"median": 0.0} for side in sides}
    for side in ("weak_2", "weak_2_horovod_fast"):
        raw |= {f"{side}_exposed_communication_share": {"median": 0.1}}
        raw |= {f"{side}_agreement_share": {"median": 0.05}}
    ways = {"weak_2": ("horovod", "fixed"), "strong_2": ("horovod", "fixed")}
    ways |= {"weak_2_horovod_fast": ("horovod", "fast"), "weak_2_torch_fast": ("torch", "fast")}
    scale = {
        "benchmark": "scale",
        "settings": {
            "device": device,
            "depth": 18,
            "size": 64,
            "cores": 2,
            "ways": {
                side: dict(zip(("engine", "sums"), way, strict=True)) for side, way in ways.items()
            },
        },
        "ratios": {
            "weak_scaling_2": 0.8,
            "weak_scaling_2_by_cpu_time": 0.9,
            "weak_scaling_2_horovod_fast": 0.7,
            "weak_scaling_2_torch_fast": 0.75,
        },
        "raw": raw,
    }
    paths = {name: folder / f"{name}.json" for name in ("allreduce", "scale")}
    for path, content in zip(paths.values(), (allreduce, scale), strict=True):
        write_json(path, content)
    return {name: str(path) for name, path in paths.items()}


def test_the_prediction_is_checked_against_the_measured_rank_counts(tmp_path):
    result = run(PredictOptions(**measured(tmp_path), depth=18))
    inputs = result.settings["inputs"]
    assert inputs["step_sec"] == 0.5 and inputs["gpu_bytes_per_sec"] == pytest.approx(1e9)
    # torch's own all-reduce was not measured.
    fixed, fast = result.figures["checks"]
    assert fixed["ranks"] == 2 and fixed["measured"] == 0.8
    assert fixed["measured_wait_sec"] == pytest.approx(0.15 * 0.6)
    for found in (fixed, fast):
        step = 0.5 / 0.9 + found["predicted_wait_sec"]  # the engine takes a tenth of the core
        assert found["predicted"] == pytest.approx(0.5 / step)
    # ResNet-18 has 44.7 MB of gradients: all after backward, at 2 GB/s.
    assert fixed["predicted_wait_sec"] == pytest.approx(1e-3 + 44.7e6 * 5e-10, rel=0.01)
    # Hidden or not, at 1 GB/s; beside backward each second costs two.
    assert 2e-3 + 44.7e-3 < fast["predicted_wait_sec"] < 2 * (2e-3 + 44.8e-3)
    ratios = result.ratios
    assert ratios["predicted_vs_measured_weak_scaling_2"] == fixed["predicted"] / 0.8
    name = "predicted_vs_measured_weak_scaling_2_horovod_fast"
    assert ratios[name] == fast["predicted"] / 0.7 and len(ratios) == 2


def test_cores_to_spare_take_nothing_from_computing(tmp_path):
    paths = measured(tmp_path)
    scale = json.loads(Path(paths["scale"]).read_text())
    waits = []
    for cores in (2, 4, 8):
        scale["settings"]["cores"] = cores
        write_json(Path(paths["scale"]), scale)
        _, fast = run(PredictOptions(**paths, depth=18)).figures["checks"]
        waits.append(fast["predicted_wait_sec"])
    assert waits[0] > waits[1] > waits[2]


@pytest.mark.parametrize("name", ["allreduce", "scale"])
def test_the_json_of_an_earlier_benchmark_is_refused(tmp_path, name):
    paths = measured(tmp_path)
    content = json.loads(Path(paths[name]).read_text())
    del content["settings"]["engine" if name == "allreduce" else "ways"]
    write_json(Path(paths[name]), content)
    with pytest.raises(ConfigError, match=f"--{name} .* is not the present JSON of that benchmark"):
        run(PredictOptions(**paths, depth=18))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--step_ms is neither given nor measured; give it or --scale FILE"),
        (GIVEN | {"latency_ms": None}, "--latency_ms is neither given .* or --allreduce FILE"),
        (GIVEN | {"scale": "absent.json"}, "--scale absent.json cannot be read as JSON; write it"),
    ],
)
def test_what_is_missing_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        run(PredictOptions(**options))


def test_what_was_measured_for_another_question_is_refused(tmp_path):
    paths = measured(tmp_path)
    for options, message in (
        (GIVEN | {"allreduce": paths["scale"]}, "is not the present JSON of that benchmark"),
        (paths, "--scale measured depth 18 and --depth=50; give --step"),
        (paths | {"depth": 18, "dtype": "fp16"}, "--allreduce holds fp32, fixed, not fp16"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(PredictOptions(**options))
    paths = measured(tmp_path, device="cuda")
    with pytest.raises(ConfigError, match="--allreduce was measured on cpu and --scale on cuda"):
        run(PredictOptions(**paths, depth=18))
