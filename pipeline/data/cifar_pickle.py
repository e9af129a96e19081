"""Reads the pickles of CIFAR-10's Python archive without unpickling.

A pickle is a program: it may name any function, ask for memory that its length does not show, and
build what takes for ever to compare. Here its instructions (pickletools) drive a machine that
knows dicts with names for keys, lists, tuples, numbers, text, and arrays of bytes, and nothing
else; what it holds is bounded by the file's own length.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.index.labels import shown

_MOST_STEPS = 1_000_000  # a batch of 10,000 images takes about 30,000
_NAMES = {
    "numpy.core.multiarray _reconstruct": "reconstruct",
    "numpy._core.multiarray _reconstruct": "reconstruct",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
}


class BadPickle(ValueError):
    """What is no such pickle; the message is a reason."""


@dataclass(eq=False)
class _Named:
    """A function or class of `_NAMES` that the pickle names."""

    what: str


@dataclass(eq=False)
class _Dtype:
    """An element type by its code, such as "u1"."""

    code: Any


@dataclass(eq=False)
class _Array:
    """An array, empty until its state is set."""

    content: NDArray[np.uint8] | None = None


def array_of(value: object) -> NDArray[np.uint8] | None:
    """Return the array (n, m) uint8 that a value of `read_pickle` is; None for anything else."""
    return value.content if isinstance(value, _Array) else None


def read_pickle(content: bytes) -> dict[bytes, Any]:
    """Return the dict of a pickle, its names as bytes; BadPickle for anything else."""
    machine = _Machine()
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if steps > _MOST_STEPS:
                raise BadPickle(f"it takes more than {_MOST_STEPS} steps")
            machine.step(opcode.name, argument)
        found = machine.result()
    except BadPickle:
        raise
    except RecursionError as error:
        raise BadPickle("it is nested too deep") from error
    except Exception as error:  # a damaged pickle is whatever its bytes happen to mean
        raise BadPickle(f"it is truncated or no pickle ({shown(str(error))})") from error
    if not isinstance(found, dict):
        raise BadPickle("it holds no dict")
    return found


class _Machine:
    """The stack, marks and memo of the pickle protocol."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def result(self) -> object:
        """Return what STOP found on the stack."""
        return self._stack[-1]

    def step(self, name: str, argument: Any) -> None:
        """Do one instruction; BadPickle for one that no such file has."""
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            self._stack.append(argument)
        elif name in _OLD_TEXT:  # of Python 2, where text was bytes
            self._stack.append(argument.encode("latin-1"))
        elif name in _STORES:
            self._memo[len(self._memo) if argument is None else argument] = self._stack[-1]
        elif name in _LOADS:
            self._stack.append(self._memo[argument])
        elif name in _STEPS:
            _STEPS[name](self)
        elif name == "GLOBAL":
            self._stack.append(_named(argument))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise BadPickle(f"it has the instruction {name}, which CIFAR-10's files do not")

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def _from_mark(self) -> list[Any]:
        start = self._marks.pop()
        found = self._stack[start:]
        del self._stack[start:]
        return found

    def new(self, make: Callable[[], object]) -> None:
        self._stack.append(make())

    def collect(self, kind: type[list[Any]] | type[tuple[Any, ...]]) -> None:
        self._stack.append(kind(self._from_mark()))

    def collect_dict(self) -> None:
        items = self._from_mark()
        self._stack.append({})
        self._set(items)

    def tuple_of(self, count: int) -> None:
        if len(self._stack) < count:
            raise BadPickle("it is truncated or no pickle")
        found = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        self._stack.append(found)

    def append(self, many: bool) -> None:
        items = self._from_mark() if many else [self._stack.pop()]
        self._top(list).extend(items)

    def set_items(self, many: bool) -> None:
        self._set(self._from_mark() if many else [self._stack.pop(-2), self._stack.pop()])

    def _set(self, items: list[Any]) -> None:
        found = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            name = key.encode() if isinstance(key, str) else key
            if not isinstance(name, bytes):
                raise BadPickle(f"it has a dict whose key is no name but {type(key).__name__}")
            if name in found:
                raise BadPickle(f"it has {name[:40]!r} twice")
            found[name] = value

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise BadPickle(f"it adds to something that is no {kind.__name__}")
        return self._stack[-1]

    def stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._stack.append(_named(f"{module} {name}"))

    def reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        what = function.what if isinstance(function, _Named) else ""
        if what == "reconstruct":
            self._stack.append(_Array())
        elif what == "dtype" and isinstance(arguments, tuple) and arguments:
            self._stack.append(_Dtype(arguments[0]))
        else:
            raise BadPickle("it calls something other than numpy's array and dtype")

    def build(self) -> None:
        state = self._stack.pop()
        if isinstance(self._stack[-1], _Array):
            self._stack[-1].content = _pixels(state)
        elif not isinstance(self._stack[-1], _Dtype):  # whose byte order bytes do not have
            raise BadPickle("it sets the state of something that is no array")


def _named(name: object) -> _Named:
    if not isinstance(name, str) or name not in _NAMES:
        words = shown(name).strip("'\"").replace(" ", ".") if isinstance(name, str) else "no name"
        raise BadPickle(f"it would run {words}")
    return _Named(_NAMES[name])


def _pixels(state: object) -> NDArray[np.uint8] | None:
    """Return the array of numpy's state of one; None if it is not of bytes in row order."""
    if not isinstance(state, tuple) or len(state) != 5:
        raise BadPickle("it has an array without the state of one")
    _, shape, kind, column_order, content = state
    of_bytes = isinstance(kind, _Dtype) and kind.code in (b"u1", "u1") and not column_order
    if not of_bytes or not isinstance(content, bytes | bytearray):
        return None
    whole = isinstance(shape, tuple) and all(type(one) is int and one >= 0 for one in shape)
    if not whole or len(shape) != 2 or shape[0] * shape[1] != len(content):
        raise BadPickle(f"it has an array whose shape does not fit its {len(content)} bytes")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT", "UNICODE",
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8",
}  # fmt: skip
_OLD_TEXT = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_STORES, _LOADS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}, {"GET", "BINGET", "LONG_BINGET"}
_STEPS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine.mark,
    "EMPTY_LIST": lambda machine: machine.new(list),
    "EMPTY_DICT": lambda machine: machine.new(dict),
    "LIST": lambda machine: machine.collect(list),
    "TUPLE": lambda machine: machine.collect(tuple),
    "DICT": _Machine.collect_dict,
    "TUPLE1": lambda machine: machine.tuple_of(1),
    "TUPLE2": lambda machine: machine.tuple_of(2),
    "TUPLE3": lambda machine: machine.tuple_of(3),
    "APPEND": lambda machine: machine.append(many=False),
    "APPENDS": lambda machine: machine.append(many=True),
    "SETITEM": lambda machine: machine.set_items(many=False),
    "SETITEMS": lambda machine: machine.set_items(many=True),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
