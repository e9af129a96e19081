"""Settings of the network that are refused, each with what would do."""

import jobs
import pytest

from pipeline.config import ConfigError, ModelConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 20}, r"model.depth=20 does not exist; of residual networks .* 18, 34, 50, 101,"),
        (
            {"depth": 50, "residual": False, "zero_init_last_norm": False},
            r"model.depth=50 does not exist; of plain networks there are 18, 34$",
        ),
        ({"family": "cifar", "depth": 21}, r"depth=21 .*; the nearest: 20 and 26 \(the paper has"),
        ({"family": "cifar", "depth": 2}, r"depth=2 .*; the nearest: 8 "),
        (
            {"depth": 18, "residual": False, "shortcut": "C", "zero_init_last_norm": False},
            r"model.shortcut=C is for residual networks and model.residual is false; leave it null",
        ),
        ({"depth": 18, "residual": False}, r"zero_init_last_norm=true would .* set it to false"),
    ],
)
def test_a_network_that_does_not_exist_is_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**settings)


@pytest.mark.parametrize("depth", [8, 20, 32, 44, 56, 110, 164, 1202])
def test_every_6n_plus_2_is_a_cifar_network(depth: int) -> None:
    assert ModelConfig("cifar", depth=depth).depth == depth


def test_an_unknown_shortcut_is_answered_in_one_line() -> None:
    job = jobs.run(["-m", "pipeline.train", "--model.shortcut=D"])
    assert job.codes == [2], job.text
    assert "error: model.shortcut" in job.text and len(job.text.splitlines()) == 1
