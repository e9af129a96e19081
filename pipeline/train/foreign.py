"""What a file of another program holds, and how its weights come in; code in it is never run."""

from __future__ import annotations

import io
import json
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.system.words import shell_word

_WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put in front of every name."""

_COUNT_OF_AVERAGES = "n_averaged"
"""What torch's AveragedModel, of which torchvision saves its EMA, holds beside its `module.`"""

_REBUILT_BY_TORCH = ("torch._utils ", "torch.storage ", "torch._tensor ", "collections OrderedDict")
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PICKLES = 4  # a torch file of before 1.6: three about itself, then what was saved
_BEGINNING = 24  # bytes of a file that a sentence shows
_SHOWN = 5  # names in a sentence
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


class NotWeights(ValueError):
    """There are no tensors by name, or it is not clear which are meant; the message says what there
    is and how to take it."""


def refusal(path: Path, what: str, exported: bool = False) -> str:
    """Why `path` is no checkpoint, and how to take what is in it; `exported`: `pipeline.export`
    wrote it."""
    told = f"checkpoint {path} is of another program: {what}"
    if exported:
        told = f"checkpoint {path} holds weights that pipeline.export wrote: {what}"
    return (
        f"{told}; take its weights, to be tested and used but not to "
        f"resume from, by python -m pipeline.export --weights {shell_word(str(path))} --config "
        "FILE --out FILE.pt, or begin a new run with them by --init"
    )


def is_exported(stored: bytes) -> bool:
    """Whether `pipeline.export` wrote this file of safetensors."""
    about = (safetensors_header(stored) or {}).get("__metadata__")
    return isinstance(about, dict) and "trainyard" in about


def beginning(stored: bytes) -> str:
    """The first bytes of a file, in words."""
    first = stored[:_BEGINNING]
    text = first.split(b"\n")[0].decode("ascii", "replace")
    if text.strip() and "\ufffd" not in text and text.isprintable():
        return repr(text)
    return f"the bytes {first[:8].hex(' ')}"


def other_format(stored: bytes) -> str | None:
    """What a file that begins as no checkpoint holds; None if it may be one, or a damaged one."""
    if stored[:2] in _PICKLE_STARTS:
        return _pickled(stored) or "it is a plain pickle, as torch.save wrote before torch 1.6"
    header = safetensors_header(stored)
    if header is not None:
        names = [name for name in header if name != "__metadata__"]
        return f"it holds safetensors, {_counted(names)}"
    return None


def safetensors_header(stored: bytes) -> dict[str, Any] | None:
    """The header of a file of safetensors: its tensors by name, and `__metadata__`, texts by name;
    None for any other file."""
    length = int.from_bytes(stored[:8], "little")
    if stored[8:9] != b"{" or length > min(len(stored), _LONGEST_HEADER):
        return None
    try:
        found = json.loads(stored[8 : 8 + length])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def inside(stored: bytes) -> str | None:
    """What a whole zip file, or a pickle of before torch 1.6, that torch does not load as plain
    data holds; None if nothing in it speaks against plain data."""
    if stored[:2] in _PICKLE_STARTS:
        return _pickled(stored)
    try:
        with zipfile.ZipFile(io.BytesIO(stored)) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith("data.pkl")]
            if any(name.endswith("constants.pkl") for name in names):
                return (
                    "it is a TorchScript archive (where it can be run, first write its tensors: "
                    "torch.save(model.state_dict(), 'weights.pth'))"
                )
            if not pickles:
                return f"it is a zip file that torch.save did not write, of {_some(names)}"
            return _pickled(archive.read(pickles[0]))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, OSError):
        return None


def _pickled(stored: bytes) -> str | None:
    """What code a pickle asks for; None if it is none, or asks only for torch's own tensors."""
    names: list[str] = []
    texts: list[str] = []
    pickles = io.BytesIO(stored)
    try:
        for operation, argument, _ in _operations(pickles):
            if operation.name == "GLOBAL":
                names.append(str(argument))
            elif operation.name == "STACK_GLOBAL" and len(texts) > 1:
                names.append(" ".join(texts[-2:]))
            elif isinstance(argument, str):
                texts.append(argument)
    except (ValueError, IndexError):  # a torch file of before 1.6 goes on behind its pickles
        pass
    asked = [
        name.replace(" ", ".")
        for name in dict.fromkeys(names)
        if not name.startswith(_REBUILT_BY_TORCH) and not name.split()[-1].endswith("Storage")
    ]
    if not asked:
        return None
    return (
        f"it holds pickled objects of {_some(asked)}, which only running code could rebuild (where "
        "you trust it, first write its tensors: torch.save(model.state_dict(), 'weights.pth'))"
    )


def _operations(pickles: io.BytesIO) -> Iterator[Any]:
    """The operations of the pickles that a file begins with."""
    for _ in range(_PICKLES):
        yield from pickletools.genops(pickles)


def tensors_in_words(content: Any) -> str | None:
    """The tensors in what another program saved, in words; None if it holds none by name."""
    if not isinstance(content, Mapping):
        return None
    if _by_name(content):
        return f"it holds {_counted(list(content))}"
    within = [name for name, value in content.items() if _by_name(value)]
    if not within:
        return None
    names = " and ".join(f"{_counted(list(content[name]))} under {name}" for name in within)
    return f"it holds {_some(list(content))}: {names}"


def state_dict_in(content: Any) -> dict[str, Tensor]:
    """The tensors by name in what another program saved: all of it, or what lies under the one name
    that has some, without the prefixes of wrappers.

    Raises `NotWeights` if there are none, or several such names.
    """
    if not isinstance(content, Mapping):
        raise NotWeights(
            f"it holds {type(content).__name__}, not tensors by name; write what "
            "model.state_dict() gives"
        )
    if is_checkpoint(content):
        raise NotWeights("it is a checkpoint of this program; give it as --checkpoint")
    within = [name for name, value in content.items() if _by_name(value)]
    if not _by_name(content) and len(within) != 1:
        raise NotWeights(_unclear(content, within))
    found = dict(content) if _by_name(content) else dict(content[within[0]])
    found.pop(_COUNT_OF_AVERAGES, None)
    while prefix := next((p for p in _WRAPPERS if all(n.startswith(p) for n in found)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def is_checkpoint(content: Any) -> bool:
    """Whether what torch has loaded is a checkpoint of this program."""
    return isinstance(content, Mapping) and {"format", "fingerprint", "config"} <= content.keys()


def _unclear(content: Mapping[Any, Any], within: list[Any]) -> str:
    if not within:
        names = _some([name for name, value in content.items() if not isinstance(value, Tensor)])
        return f"it holds {names}, not tensors by name; write what model.state_dict() gives"
    return (
        f"it holds tensors by name under {_some(within)}; write one of them alone: "
        f"torch.save(torch.load(FILE, weights_only=True)[{within[0]!r}], 'weights.pth')"
    )


def _by_name(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    return all(isinstance(n, str) and isinstance(t, Tensor) for n, t in value.items())


def _counted(names: list[str]) -> str:
    if not names:
        return "no tensor"
    number = f"{len(names)} tensors" if len(names) > 1 else "1 tensor"
    return f"{number} by name, the first {names[0]}"


def _some(names: list[Any]) -> str:
    shown = [str(name) for name in names[:_SHOWN]]
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join(shown + more) or "nothing"
