"""Signals that stop a run: remembered, until all ranks act on them together."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

# By strength, as ranks agree on the highest index that any has received. SIGUSR1 says that time is
# nearly up: save and have the job go on later. The others say: save and leave (SIGUSR2 is SIGTERM
# by way of srun, which does not pass that on; SIGHUP comes when the terminal is closed).
STOP_SIGNALS = ("", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT", "SIGTERM")
GO_ON = 0


class StopSignal:
    """Remembers a signal to stop instead of dying of it. Prints nothing: stdout may be gone."""

    def __init__(self) -> None:
        self.received: int = GO_ON
        """An index of `STOP_SIGNALS`; the strongest signal so far."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for name in STOP_SIGNALS[1:]:
            number = signal.Signals[name]
            if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: the job is to outlive its terminal
            self._previous[number] = signal.signal(number, self._remember)
        # A launcher may hold these back until somebody listens: launch/slurm/rank.py.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1, signal.SIGUSR2})
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.received = max(self.received, STOP_SIGNALS.index(signal.Signals(number).name))
