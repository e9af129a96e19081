"""Signals that came while a rank was loading."""

import os
import signal
import threading

import pytest

from pipeline.system.failure import STOP_SIGNALS, StoppedEarly, StopSignal


def test_after_a_signal_that_was_held_back_the_launchers_sigterm_raises_nothing():
    before = {name: signal.getsignal(signal.Signals[name]) for name in STOP_SIGNALS[1:]}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # no other thread takes it
        with pytest.raises(StoppedEarly, match="SIGINT"), StopSignal(whole_command=True):
            pytest.fail("there is nothing to do any more")
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        for name, handler in before.items():
            signal.signal(signal.Signals[name], handler)
