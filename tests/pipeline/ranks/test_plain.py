"""Messages between ranks: plain values come back as they were, and nothing else is taken."""

import io
import math
import os
import pickle
from collections import OrderedDict
from enum import IntEnum

import numpy as np
import pytest
import torch

from pipeline.ranks.plain import NotPlain, packed, unpacked

VALUES = [
    None, True, False, 0, -1, 2**70, 1.5, 5e-324, math.inf, "", "ä\n\x1b[31m", "\udcff name",
    b"", b"\x00\xff", [], (), {}, [1, [2, (3,)], {"a": (None, True)}], (1, [2], {"b": 1.0}),
    {1: "a", "1": "b", (1, 2): [3], None: 4}, {"tuple": [1]}, {"tensor": ["x"]},
    OrderedDict([("b", 1), ("a", 2)]),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_plain_value_comes_back_with_its_type(value):
    found = unpacked(packed(value))
    assert (type(found), repr(found)) == (type(value), repr(value))


def test_not_a_number_comes_back():
    assert math.isnan(unpacked(packed([math.nan]))[0])


KERNEL = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).view(2, 3, 4, 5)
TENSORS = {
    "channels-last": KERNEL.to(memory_format=torch.channels_last),
    "transposed": KERNEL.transpose(0, 2),
    "part": KERNEL[:, 1:, ::2],
    "expanded": torch.arange(3.0).expand(4, 3),
    "empty": torch.empty(0, 3),
    "scalar": torch.tensor(7),
    "bool": torch.tensor([True, False, True]),
    "bf16": torch.tensor([1.0, -2.5]).bfloat16(),
    "half": torch.tensor([[1.5]]).half(),
    "int8": torch.tensor([-1], dtype=torch.int8),
}


def test_tensors_come_back_with_bits_dtype_shape_and_strides():
    found = unpacked(packed({"all": list(TENSORS.values()), "odd": "x"}))["all"]
    for (name, sent), got in zip(TENSORS.items(), found, strict=True):
        assert got.dtype == sent.dtype and got.shape == sent.shape, name
        assert torch.equal(got, sent), name
        if name != "part":  # what is between its elements does not travel
            assert got.stride() == sent.stride(), name
    found[0].add_(1)  # memory of its own
    assert torch.equal(found[1], TENSORS["transposed"])


def test_a_state_dict_keeps_the_versions_of_its_modules():
    sent = torch.nn.Sequential(torch.nn.BatchNorm2d(2)).state_dict()
    found = unpacked(packed(sent))
    assert type(found) is OrderedDict and list(found) == list(sent)
    assert found._metadata == sent._metadata


class Code(IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    "value",
    [Code.ONE, np.float64(1.0), np.zeros(2), {1, 2}, print, object(), torch.nn.Parameter(KERNEL)],
    ids=lambda value: type(value).__name__,
)
def test_any_other_type_is_refused_where_it_is_sent(value):
    with pytest.raises(TypeError, match=f"a {type(value).__name__} is no plain value"):
        packed({"a": [value]})


class Bomb:
    """A pickle that runs a command, as anyone can make one."""

    def __reduce__(self):
        return os.mkdir, ("/tmp/no-rank-may-make-this",)


def _of_torch_save() -> bytes:
    payload = io.BytesIO()
    torch.save(Bomb(), payload)
    return payload.getvalue()


def _with_head(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x00" * 8, b"\xff" * 100, pickle.dumps(Bomb()), _of_torch_save(),
        _with_head(pickle.dumps(Bomb())), _with_head(b"{"), _with_head(b'{"no such": 1}'),
        _with_head(b'{"tuple": 1}'), _with_head(b'{"dict": [[[], 1]]}'), _with_head(b"[" * 10**5),
        _with_head(b'{"tensor": ["torch.float32", [1000000], [1]]}'),
        _with_head(b'{"tensor": ["torch.float32", [-1], [1]]}'),
        _with_head(b'{"tensor": ["os.system", [1], [1]]}') + b"\x00" * 64,
        _with_head(b'{"ordered": [[], 1], "tuple": []}'),
    ],
)  # fmt: skip
def test_what_a_stranger_sends_is_refused_and_never_run(content):
    given = torch.frombuffer(bytearray(content or b" "), dtype=torch.uint8)[: len(content)]
    with pytest.raises(NotPlain, match="what a rank sent is no message of this program"):
        unpacked(given)
    assert not os.path.exists("/tmp/no-rank-may-make-this")


def test_every_flip_of_a_byte_is_refused_or_is_another_plain_value():
    sent = packed({"a": [1, (2.5, b"x")], "t": KERNEL[0, 0], "o": OrderedDict(b=None)})
    for place in range(len(sent)):
        changed = sent.clone()
        changed[place] ^= 0x11
        try:
            unpacked(changed)
        except NotPlain:
            continue
