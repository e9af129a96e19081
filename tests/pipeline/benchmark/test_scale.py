"""Real ranks train against lone processes; every second of a step has a name."""

import json

import jobs
import pytest

from pipeline.benchmark.__main__ import parse
from pipeline.config import ConfigError

SHARES = ("data_wait", "agreement", "compute", "exposed_communication")


def scale(tmp_path, *options):
    """The JSON of a tiny run."""
    path = tmp_path / "s.json"
    argv = ["-m", "pipeline.benchmark", "scale", "--device=cpu", f"--json={path}", *options]
    ended = jobs.run(argv, TMPDIR=str(tmp_path))
    assert ended.codes == [0], ended.text
    assert "exposed communication" in ended.text
    assert not list(tmp_path.glob("tmp*"))  # not even the killed ranks' files are left
    return json.loads(path.read_text())


def shares(found, side):
    """The side's shares by name, of its first round."""
    return {share: found["raw"][f"{side}_{share}_share"]["rounds"][0] for share in SHARES}


def test_scale_compares_ranks_with_lone_processes_and_one_alone(tmp_path):
    found = scale(tmp_path, "--rounds=2", "--steps=2", "--images=4", "--size=32")
    assert list(found["ratios"]) == [
        "weak_scaling_2", "weak_scaling_2_by_cpu_time", "weak_scaling_2_of_alone",
        "strong_scaling_2_of_alone",
    ]  # fmt: skip
    assert len(found["ratio_rounds"]["weak_scaling_2"]["rounds"]) == 2
    for side in ("alone", "apart_2", "weak_2", "strong_2"):
        assert len(found["raw"][f"{side}_images_per_sec"]["rounds"]) == 2
        assert sum(shares(found, side).values()) == pytest.approx(1.0)
    for side in ("alone", "apart_2"):
        assert shares(found, side)["exposed_communication"] < 0.01
    for side in ("weak_2", "strong_2"):
        assert shares(found, side)["exposed_communication"] > 0
        assert shares(found, side)["agreement"] > 0
    raw = found["raw"]
    speed, step = (raw[f"alone_{key}"]["rounds"][0] for key in ("images_per_sec", "step_sec"))
    assert speed == pytest.approx(4 / step)
    assert 0 < raw["alone_forward_backward_sec"]["rounds"][0] < step


def test_a_data_set_is_waited_for(tmp_path, small_data):
    options = ("--rounds=1", "--steps=2", "--images=4", "--size=32", "--ranks=1")
    found = scale(tmp_path, f"--data={small_data}", *options)
    assert found["ratios"] == {}
    assert shares(found, "alone")["data_wait"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks=1,x"], "--ranks=1,x must be whole numbers of at least 1 with commas between"),
        (["--ranks=2,3"], "--images=64 must be a multiple of each of --ranks=2,3"),
    ],
)
def test_wrong_options_are_refused(arguments, message):
    with pytest.raises(ConfigError) as caught:
        parse(["scale", *arguments])
    assert message in str(caught.value)
