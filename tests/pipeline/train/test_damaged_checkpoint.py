"""Every change to a checkpoint's file is found, or changes nothing that is read."""

import collections
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from run_files import differences

from pipeline.train.checkpoint import DamagedCheckpoint, read_verified, write_atomically

CONTENT = {
    "format": 1,
    "step": 7,
    "model": {"weight": torch.arange(12.0).reshape(3, 4), "n": torch.tensor(3)},
    "history": [{"top1": 0.5}],
}
MASKS = [1 << bit for bit in range(8)]
STOPPED_RUN = Path(__file__).parents[1] / "fixtures" / "stopped_run"


@pytest.fixture(params=["with a digest", "from before there was one"])
def checkpoint(request, tmp_path) -> Path:
    path = tmp_path / "a.pt"
    if request.param == "with a digest":
        write_atomically(path, CONTENT)
    else:
        torch.save(CONTENT, path)
    return path


def outcome(path: Path, changed: bytes) -> str:
    """ "refused" as damaged, or "equal" in what is read."""
    with open(path, "r+b") as file:  # ext4 writes a file out at once that is cut to 0 and rewritten
        file.write(changed)
        file.truncate()
    try:
        found = read_verified(path)
    except DamagedCheckpoint as error:
        assert str(error).startswith(f"checkpoint {path} is damaged: ")
        return "refused"
    assert differences(found, CONTENT) == []
    return "equal"


def test_every_flipped_bit_is_refused_or_changes_nothing(checkpoint):
    stored, counts = bytearray(checkpoint.read_bytes()), collections.Counter()
    has_digest = b"trainyard sha256" in stored
    for place in range(len(stored)):
        for mask in MASKS:
            stored[place] ^= mask
            counts[outcome(checkpoint, stored)] += 1
            stored[place] ^= mask
    assert counts.total() == 8 * len(stored)
    # Of a file without a digest alignment, times and second copies of a record's facts are free.
    assert counts["equal"] == 0 if has_digest else counts["refused"] > counts.total() / 3


@pytest.mark.parametrize("by", [0, 0xFF])
def test_every_overwritten_byte_is_refused_or_changes_nothing(checkpoint, by):
    stored = checkpoint.read_bytes()
    for place, byte in enumerate(stored):
        if byte != by:
            outcome(checkpoint, stored[:place] + bytes([by]) + stored[place + 1 :])


def test_every_cut_and_what_is_appended_is_refused(checkpoint):
    stored = checkpoint.read_bytes()
    for length in range(len(stored)):
        assert outcome(checkpoint, stored[:length]) == "refused", length
    for more in (b"x", b"\0\0"):
        assert outcome(checkpoint, stored + more) == "refused"
    outcome(checkpoint, stored + stored)
    assert outcome(checkpoint, stored) == "equal"


def test_a_record_that_torch_takes_for_a_folder_is_read_all_the_same(tmp_path):
    """By a bit that Python's `testzip` does not look at: torch returns memory never written."""
    path = tmp_path / "a.pt"
    torch.save(CONTENT, path)
    stored = bytearray(path.read_bytes())
    at = stored.index(b"PK\x01\x02", stored.index(b"PK\x01\x02"))
    while not stored[at + 46 :].startswith(b"a/data/0"):
        at = stored.index(b"PK\x01\x02", at + 1)
    (attributes,) = struct.unpack_from("<I", stored, at + 38)
    struct.pack_into("<I", stored, at + 38, attributes | 0x10)
    path.write_bytes(stored)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    torch.load(path, weights_only=True)
    assert outcome(path, stored) == "equal"


def test_a_file_copied_alone_carries_its_digest_and_plain_torch_reads_it(tmp_path):
    path = tmp_path / "a.pt"
    write_atomically(path, CONTENT)
    other = tmp_path / "elsewhere.pt"
    other.write_bytes(path.read_bytes())
    for more in ({}, {"mmap": True}):
        assert differences(torch.load(other, weights_only=True, **more), CONTENT) == []
    with zipfile.ZipFile(other) as archive:
        assert archive.testzip() is None
        assert archive.comment.startswith(b"trainyard sha256 ")


def test_the_checkpoint_of_an_earlier_version_is_read_as_plain_torch_reads_it():
    (path,) = STOPPED_RUN.rglob("step-*.pt")
    plain = torch.load(path, map_location="cpu", weights_only=True)
    assert differences(read_verified(path), plain) == []
