"""Ranks check in with rank 0 before their engine starts, so that one that never comes is named.

Left to themselves, Horovod (0.28.1) aborts after 30 s without saying who is missing, and
torch.distributed waits. So each rank first puts its name into the launcher's key-value store. Rank
0 looks for the others and they for its word, so that n ranks ask n times, not n squared.

A store may outlive a start: torchrun starts ranks anew in the same one. So a rank signs with a
number that nobody had before, and rank 0's word counts only where it names that number.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pipeline.ranks.addresses import own_addresses
from pipeline.ranks.heartbeat import Peer
from pipeline.system.failure import ExitCode, FellWithPeer, Reported, TrainingError
from pipeline.system.launched import Engine

T = TypeVar("T")

_DEFAULT_SEC = 120  # importing torch from a cold network file system takes a minute
_NAP_SEC = 0.5  # the longest between two looks into the store
_WORD_SEC = 2.0  # how much later than rank 0 the others give up, so that its error comes first
_SPEECH_SEC = 3.0  # the first rank to leave makes the launcher end the others
_VARIABLES: dict[Engine, str] = {
    "horovod": "HOROVOD_START_TIMEOUT",  # horovodrun sets it by --start-timeout
    "torch": "TRAINYARD_START_TIMEOUT",
}


class Store(Protocol):
    """A launcher's key-value store; its string is its address. Methods raise `OSError` if it cannot
    be reached."""

    def put(self, key: str, value: str) -> bool:
        """Stores `value`; true."""

    def get(self, key: str) -> str | None:
        """The stored value; None if there is none."""


def start_timeout_sec(engine: Engine) -> int:
    """Seconds that ranks wait for each other to start. Raises `ValueError` for a bad setting."""
    name = _VARIABLES[engine]
    value = os.environ.get(name, str(_DEFAULT_SEC))
    if not value.isascii() or not value.isdigit() or int(value) == 0:
        raise ValueError(f"{name}={value} must be a whole number of seconds above 0")
    return int(value)


@dataclass(frozen=True)
class Start:
    """One start of a job."""

    name: str
    """A name that no other start has."""
    peers: tuple[Peer, ...]
    """The processes of all ranks, by rank."""


def check_in(
    store: Store, rank: int, size: int, engine: Engine, trouble: str | None = None
) -> Start:
    """Collective. Returns when every rank of the job has arrived.

    `trouble` is why this rank could not continue, and what helps: then rank 0 raises `ValueError`
    with that of the lowest rank that has any, and the others `Reported`. After `start_timeout_sec`
    raises `TrainingError` naming who has not arrived on the lowest rank there is, and
    `FellWithPeer` on the others.
    """
    limit_sec = start_timeout_sec(engine)
    me = _Arrival(store, rank, size, limit_sec, trouble)
    word = me.gather() if rank == 0 else me.hear()
    if word["missing"]:
        _give_up(rank, size, word["missing"], limit_sec, _VARIABLES[engine])
    signs = [json.loads(word["seen"][str(other)]) for other in range(size)]
    for other, sign in enumerate(signs):
        if sign["trouble"] is not None:
            message = f"{'' if other == 0 else f'rank {other}: '}{sign['trouble']}"
            if rank == 0:
                raise ValueError(message)
            time.sleep(_SPEECH_SEC)
            raise Reported(message, ExitCode.WRONG_INPUT)
    peers = (
        Peer(other, sign["host"], sign["pid"], tuple(sign["addresses"]))
        for other, sign in enumerate(signs)
    )
    return Start(str(word["start"]), tuple(peers))


@dataclass
class _Arrival:
    """One rank's arrival. Keys: `rank-n` has the rank's sign, `word` what rank 0 says, `heard-n`
    the start that the rank has heard of."""

    store: Store
    rank: int
    size: int
    limit_sec: float
    trouble: str | None = None
    heard: bool = False

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.limit_sec
        me = Peer.here(self.rank)
        sign = {
            "host": me.host, "pid": me.pid, "addresses": own_addresses(),
            "trouble": self.trouble, "number": secrets.token_hex(8),
        }  # fmt: skip
        self.sign = json.dumps(sign)

    def gather(self) -> dict[str, Any]:
        """Rank 0: waits until all have heard its word; returns it."""
        self._announce()
        start = secrets.token_hex(8)
        missing, seen = list(range(1, self.size)), {"0": self.sign}

        def all_heard() -> bool | None:
            came = {str(r): sign for r in missing if (sign := self.store.get(f"rank-{r}"))}
            if came.items() - seen.items():
                seen.update(came)
                self._speak(start, seen, None)
            missing[:] = [r for r in missing if self.store.get(f"heard-{r}") != start]
            return None if missing else True

        self._speak(start, seen, None)
        _patiently(self.store, self.end, all_heard)
        return self._speak(start, seen, missing)

    def _speak(self, start: str, seen: dict[str, str], missing: list[int] | None) -> dict[str, Any]:
        """Says which start of the job this is, whom it has seen, and who is missing; None: it still
        waits."""
        word = {"start": start, "seen": seen, "missing": missing}
        self.store.put("word", json.dumps(word))
        return word

    def hear(self) -> dict[str, Any]:
        """Any other rank: waits for rank 0's word; returns it."""
        self._announce()
        found = _patiently(self.store, self.end + _WORD_SEC, self._word)
        if found is None and self._came(0):  # it came later, and counts from then
            found = _patiently(self.store, self.end + self.limit_sec + _WORD_SEC, self._word)
        if found is None:
            others = (r for r in range(self.size) if r != self.rank)
            return {"missing": [r for r in others if r == 0 or not self._came(r)]}
        return found

    def _word(self) -> dict[str, Any] | None:
        """Rank 0's last word, once it has seen this rank."""
        word: dict[str, Any] = json.loads(self.store.get("word") or "{}")
        if word.get("seen", {}).get(str(self.rank)) != self.sign:
            return None
        if word["missing"] is None and not self.heard:
            self.heard = self.store.put(f"heard-{self.rank}", word["start"])
        return word if word["missing"] is not None else None

    def _announce(self) -> None:
        _patiently(self.store, self.end, lambda: self.store.put(f"rank-{self.rank}", self.sign))

    def _came(self, rank: int) -> bool:
        return self.store.get(f"rank-{rank}") is not None


def _patiently(store: Store, end: float, look: Callable[[], T | None]) -> T | None:
    """The first result of `look` that is not None; None once `end` has passed.

    Raises `TrainingError` if the store could still not be reached then.
    """
    nap_sec = 0.02
    while True:
        failed: OSError | None = None
        try:
            found = look()
            if found is not None:
                return found
        except OSError as error:
            failed = error
        if time.monotonic() >= end:
            if failed is not None:
                raise TrainingError(
                    f"the launcher's rendezvous at {store} cannot be reached ({failed}); see that "
                    "the launcher still runs and that its host and port are open to this one"
                ) from failed
            return None
        time.sleep(nap_sec)
        nap_sec = min(_NAP_SEC, 1.5 * nap_sec)


def _give_up(rank: int, size: int, missing: list[int], limit_sec: float, variable: str) -> None:
    if rank == 0:
        time.sleep(_NAP_SEC)  # the others hear of it: the store may be gone with this rank
    who = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}"
    if rank == min(set(range(size)) - set(missing)):
        raise TrainingError(
            f"{who} of {size} did not start within {limit_sec:g} s; see what the launcher and that "
            f"node say, or allow more time with {variable} (in seconds)"
        )
    time.sleep(_SPEECH_SEC)
    raise FellWithPeer(f"rank {rank} ends because {who} did not start")
