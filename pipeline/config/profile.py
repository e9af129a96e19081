"""Which steps `--profile` asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pipeline.config.errors import require

MOST_STEPS = 100
"""A trace takes in the order of a megabyte a step, and a browser has to open it."""
WARM_STEPS = 10
"""Steps of a start before those that `--profile 5` takes: the first are slower than the rest."""

_FORM = re.compile(r"(\d{1,12})(?:-(\d{1,12}))?", re.ASCII)


@dataclass(frozen=True)
class ProfiledSteps:
    """Steps counted from 0, as in the log's "stopped before step 7": `count` of them from `first`
    on, or if that is None soon after the start."""

    first: int | None
    count: int

    def of_start(self, begin: int, total_steps: int) -> range:
        """The steps for a start that trains [begin, total_steps); empty if they lie behind it.

        Raises `ConfigError` for steps that the run does not have.
        """
        if self.first is None:
            require(
                self.count <= total_steps,
                f"--profile {self.count} asks for more steps than the {total_steps} of the run; "
                f"ask for at most {total_steps}",
            )
            first = max(begin, min(begin + WARM_STEPS, total_steps - self.count))
            return range(first, min(first + self.count, total_steps))
        end = self.first + self.count
        require(
            end <= total_steps,
            f"--profile {self.first}-{end - 1} reaches beyond the run, whose last step is "
            f"{total_steps - 1}; choose steps up to that one",
        )
        return range(max(begin, self.first), max(begin, end))


def profiled_steps(text: str) -> ProfiledSteps:
    """What `text`, such as 5 or 20-25, stands for. Raises `ConfigError`."""
    found = _FORM.fullmatch(text)
    steps = None
    if found is not None and found[2] is None:
        steps = ProfiledSteps(None, int(found[1]))
    elif found is not None:
        steps = ProfiledSteps(int(found[1]), int(found[2]) - int(found[1]) + 1)
    require(
        steps is not None and 1 <= steps.count <= MOST_STEPS,
        f"--profile {text} must be a number of steps, such as 5, or the first and the last of "
        f"them, such as 20-25 counted from 0: at least 1 and at most {MOST_STEPS}",
    )
    assert steps is not None
    return steps
