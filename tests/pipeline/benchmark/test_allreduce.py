"""Two real ranks average tensors of a few bytes; what the times say is computed from them."""

import json

import jobs
import pytest

from pipeline.benchmark.__main__ import parse
from pipeline.benchmark.allreduce import default_sizes
from pipeline.config import ConfigError


def test_two_ranks_are_timed_by_size_and_dtype(tmp_path):
    path = tmp_path / "a.json"
    options = ("--device=cpu", "--rounds=2", "--sizes=8192,4096", f"--json={path}")
    ended = jobs.run(["-m", "pipeline.benchmark", "allreduce", *options], HOROVOD_CYCLE_TIME="1")
    assert ended.codes == [0], ended.text
    assert "bus GB/s" in ended.text and "fp16_vs_fp32_time = " in ended.text
    found = json.loads(path.read_text())
    assert found["settings"]["ranks"] == 2 and found["settings"]["device"] == "cpu"
    assert found["settings"]["environment"] == {"HOROVOD_CYCLE_TIME": "1"}
    rows = found["raw"]["by_size"]
    assert [(row["dtype"], row["bytes"]) for row in rows] == [
        ("fp32", 4096), ("fp32", 8192), ("fp16", 2048), ("fp16", 4096),
    ]  # fmt: skip
    for row in rows:
        rounds = found["raw"][f"{row['dtype']}_{row['bytes']}_bytes_sec"]["rounds"]
        assert len(rounds) == 2 and min(rounds) <= row["sec"] <= max(rounds)
        assert row["algorithm_bytes_per_sec"] == pytest.approx(row["bytes"] / row["sec"])
        assert row["bus_bytes_per_sec"] == pytest.approx(row["algorithm_bytes_per_sec"])  # 2 ranks
    for fit in found["raw"]["fit"].values():
        assert fit["latency_sec"] >= 0 and fit["sec_per_byte"] >= 0 and fit["tensor_sec"] >= 0
    assert list(found["ratios"]) == ["fp16_vs_fp32_time"]


def test_default_sizes_end_at_the_largest_of_the_device():
    assert default_sizes("cpu") == [4096 * 4**power for power in range(8)]
    assert default_sizes("cpu")[-1] == 64 * 2**20
    assert default_sizes("cuda")[-1] == 256 * 2**20


def test_more_ranks_than_cores_are_refused():
    ended = jobs.run(["-m", "pipeline.benchmark", "allreduce", "--device=cpu", "--ranks=4096"])
    assert ended.codes == [2]
    assert "would measure how they share cores; lower --ranks to at most" in ended.text


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--ranks=1", "--ranks=1 must be at least 2: one rank sends nothing"),
        ("--sizes=4096,6", "--sizes=4096,6: 6 must be a multiple of 4 bytes"),
        ("--sizes=4k", "--sizes=4k must be whole numbers of at least 4 with commas between"),
        ("--dtypes=bf16", "--dtypes=bf16 must be some of fp32, fp16 with commas between"),
    ],
)
def test_wrong_options_are_refused(argument, message):
    with pytest.raises(ConfigError) as caught:
        parse(["allreduce", argument])
    assert message in str(caught.value)
