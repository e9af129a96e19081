"""What the end of a run says of the configuration's expectation."""

import pytest

from pipeline.config import ConfigError, RunConfig
from pipeline.train.run import against_expectation


def test_the_summary_says_whether_the_expectation_was_reached():
    assert against_expectation(0.965, 0.95) == (
        "as expected: top-1 96.50% reaches the 95.00% of run.expect_top1"
    )
    assert against_expectation(0.9, 0.95) == (
        "below expectation: top-1 90.00% is 5.00 points under the 95.00% of run.expect_top1"
    )


def test_an_expectation_is_a_share():
    with pytest.raises(ConfigError, match=r"run\.expect_top1=95 must be a share in \[0, 1\]"):
        RunConfig(expect_top1=95)
