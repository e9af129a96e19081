"""Small collectives between the ranks of one machine, through memory that all of them see.

Decisions, counts and objects are a few bytes. Over an engine each of them is messages between
processes and a thread that looks for work; here it is a note that every rank puts up, and reads.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pipeline.ranks.shared import Mapped, Waiting

CAPACITY_BYTES = 2**18
"""The longest note."""
_HEADER_BYTES = 4096
_SLOT_BYTES = CAPACITY_BYTES + 64  # its length, and the note from the next cache line on


class Board:
    """Where every rank of a machine puts up one note after the other, and reads those of all.

    Notes alternate between two slots. Note n overwrites note n - 2, which every rank had read
    before it put up n - 1; this rank has read n - 1 of all, so the wait in `start` ends at once.
    """

    def __init__(self, mapped: Mapped, waiting: Waiting) -> None:
        self._rank, self._waiting, self._notes = mapped.rank, waiting, 0
        self._heads = [np.frombuffer(one, np.int64, 2) for one in mapped.memories]  # written, read
        self._slots = [
            [
                np.frombuffer(one, np.uint8, _SLOT_BYTES, _HEADER_BYTES + slot * _SLOT_BYTES)
                for slot in range(2)
            ]
            for one in mapped.memories
        ]

    @staticmethod
    def size_bytes() -> int:
        """The memory that each rank has to map."""
        return _HEADER_BYTES + 2 * _SLOT_BYTES

    def start(self, note: Tensor) -> Callable[[], list[Tensor]]:
        """Collective. Puts up `note` (n,) uint8, n at most `CAPACITY_BYTES`, and returns what waits
        for those of all ranks. A rank reads each note before it puts up the next."""
        self._notes += 1
        number, slot = self._notes, self._notes % 2
        assert number == 1 or self._heads[self._rank][1] == number - 1, "the last was not read"
        self._waiting.until(lambda rank: self._heads[rank][1] >= number - 2)
        mine = self._slots[self._rank][slot]
        mine[:8].view(np.int64)[0] = len(note)
        mine[64 : 64 + len(note)] = note.numpy()
        self._heads[self._rank][0] = number

        def finish() -> list[Tensor]:
            self._waiting.until(lambda rank: self._heads[rank][0] >= number)
            found = []
            for slots in self._slots:
                length = int(slots[slot][:8].view(np.int64)[0])
                found.append(torch.from_numpy(slots[slot][64 : 64 + length].copy()))
            self._heads[self._rank][1] = number
            return found

        return finish

    def gather(self, tensor: Tensor) -> Tensor:
        """Collective. Stacks equal-shaped CPU tensors: (size, *shape), by rank."""
        note = tensor.contiguous().reshape(-1).view(torch.uint8)
        rows = torch.stack(self.start(note)())
        return rows.view(tensor.dtype).view(len(rows), *tensor.shape)
