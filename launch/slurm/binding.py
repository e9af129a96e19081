"""Binds a rank to the cores that its GPU is wired to.

A GPU is wired to the PCIe lanes of one socket. A rank on the other socket sends every batch and
every kernel launch over the link between the sockets, and has its memory there as well: Linux puts
a page where the thread that first touches it runs, so that binding the cores binds the memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pipeline.system.gpus import query_gpus
from pipeline.system.launched import launched

PCI_DEVICES = Path("/sys/bus/pci/devices")
TOPOLOGY = Path("/sys/devices/system/cpu")


def bind_near_gpu(env: Mapping[str, str]) -> set[int]:
    """Binds this process to its part of the cores near its GPU; returns the cores it then has.

    Does nothing without nvidia-smi or where the kernel does not know the wiring. Local rank n uses
    GPU n of those it sees, or the only one.
    """
    allowed = os.sched_getaffinity(0)
    gpus = visible_gpus(env.get("CUDA_VISIBLE_DEVICES"), bus_ids())
    this = launched(env)
    rank, ranks = this.local_rank, this.local_size
    near = [cores_near(bus_id, PCI_DEVICES) for bus_id in gpus]
    mine = part(near, rank, ranks, allowed, physical_cores(allowed, TOPOLOGY))
    if mine:
        os.sched_setaffinity(0, mine)
    return mine or allowed


def bus_ids() -> dict[str, str]:
    """PCI bus id of every GPU of this machine, by index and by UUID; empty without nvidia-smi."""
    rows, _ = query_gpus("index", "uuid", "pci.bus_id")
    return {name: bus_id for index, uuid, bus_id in rows for name in (index, uuid)}


def visible_gpus(visible: str | None, known: Mapping[str, str]) -> list[str]:
    """Bus ids of the GPUs that CUDA_VISIBLE_DEVICES (indices or UUIDs) shows, in its order."""
    if visible is None:
        return [bus_id for name, bus_id in known.items() if name.isdecimal()]
    return [known[name] for name in visible.split(",") if name in known]


def cores_near(bus_id: str, devices: Path) -> set[int]:
    """The cores wired to a PCI device, as the kernel reports; empty if it does not.

    nvidia-smi writes 00000000:1B:00.0 where the folder in /sys/bus/pci/devices is 0000:1b:00.0.
    """
    domain, _, rest = bus_id.lower().partition(":")
    try:
        text = (devices / f"{domain[-4:]}:{rest}" / "local_cpulist").read_text()
    except OSError:
        return set()
    return parse_cores(text)


def parse_cores(text: str) -> set[int]:
    """The kernel's "0-3,8" as {0, 1, 2, 3, 8}."""
    cores: set[int] = set()
    for span in filter(None, text.strip().split(",")):
        first, _, last = span.partition("-")
        cores |= set(range(int(first), int(last or first) + 1))
    return cores


def part(
    near: Sequence[set[int]], rank: int, ranks: int, allowed: set[int],
    siblings: Mapping[int, int],
) -> set[int]:  # fmt: skip
    """The cores of local rank `rank` of `ranks`, empty for no binding.

    `near` has the cores near each GPU this rank sees: one for every local rank, or its own only.
    Ranks whose GPUs share a socket divide its cores, in the order of their ranks; `siblings` names
    the physical core of each, so that its hardware threads stay together. Where that would leave a
    rank with less than half an even share, as in a job whose cores all lie on one socket, all of
    `allowed` is divided evenly: every step waits for the slowest rank.
    """
    if len(near) == 1 and ranks > 1:
        return near[0] & allowed  # its own GPU only: how the others lie is not known here
    if len(near) < ranks or not all(near[:ranks]):
        return set()

    def shared(cores: set[int], place: int, count: int) -> set[int]:
        ordered = sorted(cores, key=lambda core: (siblings.get(core, core), core))
        return set(ordered[place * len(cores) // count : (place + 1) * len(cores) // count])

    parts: list[set[int]] = []
    for mine in near[:ranks]:
        sharing = [r for r in range(ranks) if near[r] == mine]
        parts.append(shared(mine & allowed, sharing.index(len(parts)), len(sharing)))
    if 2 * min(map(len, parts)) < len(allowed) // ranks:
        return shared(allowed, rank, ranks)
    return parts[rank]


def physical_cores(cores: Iterable[int], topology: Path) -> dict[int, int]:
    """The first hardware thread of the physical core that each of `cores` belongs to.

    `topology` is /sys/devices/system/cpu; a core that is not in it is its own first thread.
    """
    found = {}
    for core in cores:
        try:
            text = (topology / f"cpu{core}" / "topology" / "thread_siblings_list").read_text()
        except OSError:
            found[core] = core
        else:
            found[core] = min(parse_cores(text))
    return found
