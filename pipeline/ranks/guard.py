"""Names a rank that is lost between its arrival and its connections.

Every rank has checked in, and its engine is about to connect it to the others. Of one that dies or
is stopped now Horovod (0.28.1) says nothing: its thread aborts the processes of all others, some at
once and some after 30 s. So meanwhile each rank looks at the processes of its own host, and shows
the other hosts through the launcher's store that it still runs.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from types import TracebackType

from pipeline.ranks.checkin import Start, Store
from pipeline.ranks.heartbeat import Peer
from pipeline.system.failure import ExitCode, say_error

log = logging.getLogger("trainyard")

_LOOK_SEC = 0.5
_DEAD_SEC = 1.0  # one that has left in peace may not have been able to say so any more
_SILENT_SEC = 15.0  # a rank that does not run; Gloo gives up after 30
_SIGN_SEC = 0.5  # between two signs of a host's life, once the ranks are connected
_CALL_SEC = 3.0  # none for as long: lost. horovodrun gives the others 5 s in all to say so
_TURN_SEC = 0.4  # between two ranks that have the same to say
_CONNECTED, _FAILED = "connected", "failed"
_GONE = "is stopped, dead or cut off: nothing was heard of it for {:.0f} s"


class Guard:
    """Watches over the connecting of one rank, in a thread: a context manager. Ends the process
    when another rank is lost."""

    def __init__(self, store: Store, rank: int, start: Start) -> None:
        self._store, self._rank, self._start = store, rank, start
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="guard", daemon=True)
        self._ending = threading.Lock()
        self._since: dict[int, float] = {}  # when a rank began to look lost
        self._heard: dict[int, tuple[str | None, float]] = {}  # its last sign of life, and when
        limit = float(os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS") or 2 * _SILENT_SEC)
        self._silent_sec = min(_SILENT_SEC, limit / 2)

    def __enter__(self) -> Guard:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()
        self._put("life", _CONNECTED if kind is None else _FAILED)

    def _put(self, what: str, value: str) -> None:
        with suppress(OSError):  # no launcher any more: its end is that of the job
            self._store.put(f"{what}-{self._start.name}-{self._rank}", value)

    def _life_of(self, peer: Peer) -> str | None:
        try:
            return self._store.get(f"life-{self._start.name}-{peer.rank}")
        except OSError:
            return None

    def _watch(self) -> None:
        looks = 0
        while not self._closing.wait(_LOOK_SEC):
            looks += 1
            self._put("life", str(looks))
            lost = self._lost()
            if lost and not self._closing.is_set():
                self._end(lost)

    def _lost(self) -> list[str]:
        """The ranks that will never come, and why, as the first half of a sentence about it."""
        me, lost = self._start.peers[self._rank], []
        for peer in self._start.peers:
            if peer.host == me.host:
                trouble = peer.trouble()
                patience_sec = self._silent_sec if peer.alive else _DEAD_SEC
            elif 0 in (self._rank, peer.rank):  # else each would ask for each
                trouble, patience_sec = self._silence_of(peer), 0.0
            else:
                continue
            if trouble is None or self._life_of(peer) in (_CONNECTED, _FAILED):
                self._since.pop(peer.rank, None)
                continue
            now = time.monotonic()
            if now - self._since.setdefault(peer.rank, now) >= patience_sec:
                lost.append(f"{peer} {trouble}")
        return lost

    def _silence_of(self, peer: Peer) -> str | None:
        now, life = time.monotonic(), self._life_of(peer)
        if peer.rank not in self._heard or self._heard[peer.rank][0] != life:
            self._heard[peer.rank] = life, now
        silent_sec = now - self._heard[peer.rank][1]
        return _GONE.format(silent_sec) if silent_sec >= self._silent_sec else None

    def aborted(self) -> None:
        """Ends the process, whose engine has just given up, with whom it has lost if that can be
        seen."""
        end = time.monotonic() + 2 * _DEAD_SEC
        while not (lost := self._lost()) and time.monotonic() < end:
            time.sleep(0.1)
        self._end(lost)

    def _end(self, lost: Sequence[str]) -> None:
        """Says who is lost unless another rank has, and exits: the main thread is in the engine."""
        with self._ending:
            time.sleep(_TURN_SEC * min(self._rank, 8))
            if self._told():
                log.error("rank %d ends because another rank failed", self._rank)
            else:
                self._put("told", "yes")
                cause = (
                    f"{', '.join(lost)}, while the ranks connected; start again"
                    if lost
                    else "the ranks met, and then could not connect (the engine's reason is above)"
                    "; see whether nodes reach each other by HOROVOD_GLOO_IFACE, and start again"
                )
                say_error(f"rank {self._rank}: {cause}")
            os._exit(ExitCode.FAILED)

    def _told(self) -> bool:
        name = self._start.name
        try:
            return any(self._store.get(f"told-{name}-{peer.rank}") for peer in self._start.peers)
        except OSError:
            return False


def keep_signs(store: Store, rank: int, start: Start) -> None:
    """From now on the first rank of every host shows the others through the store that it runs; of
    the other ranks of a host those beside them know. Does nothing on one host."""
    if rank in {peer.rank for peer in _signing(start.peers)}:
        sign = partial(_sign, store, f"sign-{start.name}-{rank}")
        threading.Thread(target=sign, name="signs", daemon=True).start()


def _signing(peers: Sequence[Peer]) -> list[Peer]:
    first: dict[str, Peer] = {}
    for peer in peers:
        first.setdefault(peer.host, peer)
    return [] if len(first) == 1 else list(first.values())


def _sign(store: Store, key: str) -> None:
    for count in itertools.count():
        with suppress(OSError):  # a launcher's store that does not answer now
            store.put(key, str(count))
        time.sleep(_SIGN_SEC)


def roll_call(store: Store, rank: int, start: Start) -> list[Peer]:
    """The first ranks of hosts whose signs have stopped, for one that finds a collective failed.

    Not every rank finds that: one that waits for none, or for ranks that are still there, goes on.
    So ranks are not asked for an answer, and one that leaves because of the failure says so first.
    Nobody is named where the signs of this rank's own host do not come through either.
    """

    def read(what: str, peers: Sequence[Peer]) -> dict[int, str | None]:
        return {peer.rank: store.get(f"{what}-{start.name}-{peer.rank}") for peer in peers}

    signing, here = _signing(start.peers), start.peers[rank].host
    try:
        store.put(f"left-{start.name}-{rank}", "yes")
        before, end = read("sign", signing), time.monotonic() + _CALL_SEC
        silent = signing
        while silent and time.monotonic() < end:
            time.sleep(_LOOK_SEC)
            now = read("sign", silent)
            silent = [peer for peer in silent if now[peer.rank] == before[peer.rank]]
        left = read("left", silent)
    except OSError:  # no launcher any more
        return []
    if any(peer.host == here for peer in silent):
        return []
    return [peer for peer in silent if left[peer.rank] is None]


@contextmanager
def abort_told(guard: Guard) -> Iterator[None]:
    """Gives `guard` the last word when native code aborts in the body.

    Not Python's own handler: that only notes the signal, for a main thread that never runs again.
    """
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _number: guard.aborted())
    before = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGABRT, before)
