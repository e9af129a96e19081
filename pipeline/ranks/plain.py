"""Plain values as bytes, and back: what ranks send each other, and nothing that could run.

Not pickle: whoever reaches a rank's port could send one, and reading it runs what it says. Here a
message is JSON, in which a value that JSON lacks stands as {its kind: its parts}, followed by the
raw memory of the tensors. Reading it can make the types below, and no other.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipeline.system.failure import TrainingError

_ALIGNED = 16  # bytes, so that a view of any dtype may begin where a tensor does
_HEAD = 8  # bytes of the length of the JSON
_VERSIONS = "_metadata"  # by which a state_dict carries the versions of its modules
_DTYPES = {
    str(dtype): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
        torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


class NotPlain(TrainingError):
    """Bytes that no `packed` has made."""


def packed(value: Any) -> Tensor:
    """`value` as (n,) uint8 on the CPU, for `unpacked`.

    It may be None, bool, int, float, str, bytes, a tensor, or a list, tuple, dict or OrderedDict of
    such, however deep; each comes back as the same type, a tensor on the CPU with its strides, or
    contiguous if it is part of something larger.
    Raises `TypeError` for any other type, subclasses of these among them.
    """
    tensors: list[Tensor] = []
    text = json.dumps(_tree(value, tensors), separators=(",", ":")).encode()
    parts = [torch.tensor([len(text)]).view(torch.uint8), _bytes(text)]
    size = _HEAD + len(text)
    for tensor in tensors:
        gap = -size % _ALIGNED
        parts += [torch.zeros(gap, dtype=torch.uint8), tensor]
        size += gap + len(tensor)
    return torch.cat(parts)


def unpacked(content: Tensor) -> Any:
    """The value of which `packed` made `content`, (n,) uint8 on the CPU. Raises `NotPlain` for
    bytes of anything else; makes nothing but the types that `packed` takes."""
    try:
        length = int(content[:_HEAD].clone().view(torch.int64)[0])
        end = _HEAD + length
        if not 0 < length <= len(content) - _HEAD:
            raise ValueError(f"its head is {length} bytes long")
        tree = json.loads(content[_HEAD:end].numpy().tobytes())
        return _value(tree, _Memory(content, end))
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError, RecursionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise NotPlain(f"what a rank sent is no message of this program ({reason})") from error


def _bytes(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def _tree(value: Any, tensors: list[Tensor]) -> Any:
    """`value` as JSON has it; the memory of its tensors, as bytes, is added to `tensors`."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind is list:
        return [_tree(one, tensors) for one in value]
    if kind is tuple:
        return {"tuple": [_tree(one, tensors) for one in value]}
    if kind in (dict, OrderedDict):
        pairs = [[_tree(key, tensors), _tree(one, tensors)] for key, one in value.items()]
        if kind is dict:
            return {"dict": pairs}
        return {"ordered": [pairs, _tree(getattr(value, _VERSIONS, None), tensors)]}
    if kind is bytes:
        return {"bytes": value.hex()}
    if kind is Tensor and str(value.dtype) in _DTYPES and value.layout is torch.strided:
        return {"tensor": _described(value.detach().cpu(), tensors)}
    raise TypeError(
        f"a {kind.__qualname__} is no plain value and does not travel between ranks; use its parts"
    )


def _described(tensor: Tensor, tensors: list[Tensor]) -> list[Any]:
    extent = _extent(tensor.shape, tensor.stride())
    if extent > tensor.numel():  # part of something larger
        tensor = tensor.contiguous()
        extent = tensor.numel()
    memory = tensor.as_strided((extent,), (1,)) if extent else tensor.reshape(-1)
    tensors.append(memory.view(torch.uint8))
    return [str(tensor.dtype), list(tensor.shape), list(tensor.stride())]


def _extent(shape: Any, stride: Any) -> int:
    """Elements from the first to the last of a tensor, both counted; 0 for one without any."""
    if 0 in shape:
        return 0
    return int(1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)))


class _Memory:
    """The tensors' memory in a message, handed out one after the other."""

    def __init__(self, content: Tensor, begin: int) -> None:
        self._content, self._begin = content, begin

    def tensor(self, described: list[Any]) -> Tensor:
        """The next tensor, in memory of its own."""
        name, shape, stride = described
        dtype = _DTYPES[name]
        if not all(type(n) is int and n >= 0 for n in (*shape, *stride)):
            raise ValueError("it has a tensor of no possible shape")
        extent = _extent(shape, stride)
        begin = self._begin + -self._begin % _ALIGNED
        end = begin + extent * dtype.itemsize
        if end > len(self._content):
            raise ValueError("it ends within a tensor")
        self._begin = end
        memory = self._content[begin:end].clone().view(dtype)
        return memory.as_strided(shape, stride)


def _value(tree: Any, memory: _Memory) -> Any:
    if isinstance(tree, list):
        return [_value(one, memory) for one in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, parts),) = tree.items()
    made: dict[str, Callable[[], Any]] = {
        "tuple": lambda: tuple(_value(one, memory) for one in parts),
        "dict": lambda: {_value(k, memory): _value(one, memory) for k, one in parts},
        "ordered": lambda: _ordered(parts, memory),
        "bytes": lambda: bytes.fromhex(parts),
        "tensor": lambda: memory.tensor(parts),
    }
    return made[kind]()


def _ordered(parts: list[Any], memory: _Memory) -> OrderedDict[Any, Any]:
    pairs, versions = parts
    found = OrderedDict((_value(key, memory), _value(one, memory)) for key, one in pairs)
    if versions is not None:
        setattr(found, _VERSIONS, _value(versions, memory))
    return found
