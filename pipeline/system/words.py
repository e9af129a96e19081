"""Text for people: nothing in it moves a cursor, hides, begins a line of its own, or is no
character at all.

Names of files, classes and runs may hold any byte. What is read back by a program keeps them as
they are (`system.files.write_text`, JSON); what people read goes through `printable`.
"""

from __future__ import annotations

import os
import shlex
import unicodedata


def printable(text: str) -> str:
    """`text` on one line, with what is not printed as Python escapes it: a newline as `\\n`, the
    byte ff of a name that is not UTF-8 as `\\xff`."""
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) else _escaped(c) for c in text)


def shell_word(text: str) -> str:
    """`text` as one word of a command that a message suggests, to be copied into a shell; what is
    not printed as bash's `$'...'` has it."""
    if printable(text) == text:
        return shlex.quote(text)
    shown = (
        chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}"
        for byte in os.fsencode(text)
    )
    return f"$'{''.join(shown)}'"


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name, as Python holds it
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
