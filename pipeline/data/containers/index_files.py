"""Index files beside containers: not read by them, but they know how many records there were.

Nothing in a TFRecord or RecordIO file tells how many records it has: cut exactly between two, it is
whole for all that can be seen. A tar archive has an end mark and needs no index.
"""

import logging
from pathlib import Path

from pipeline.data.containers.common import Window

log = logging.getLogger("trainyard")


def check_against_index(window: Window, index: Path, offset_column: int) -> None:
    """Raise BadContainer if the index, if there is one, has a record where the container has ended.

    index: lines of numbers with blanks between, in `offset_column` where a record begins. One that
    is no such file is warned of and not used. OSError if it cannot be read.
    """
    if not index.exists():
        return
    offsets = []
    for number, line in enumerate(index.read_bytes().splitlines(), start=1):
        parts = line.split()
        if not (len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit()):
            log.warning("the index %s is not used: its line %d is not two numbers", index, number)
            return
        offsets.append(int(parts[offset_column]))
    beyond = [offset for offset in offsets if offset >= window.length]
    if beyond:
        reason = (
            f"the file ends, but {index} has {len(beyond)} of its {len(offsets)} records from "
            f"there on: it is cut off"
        )
        cure = f"copy it anew from its source, or remove {index.name} if it is another file's"
        raise window.bad(window.length, reason, cure)
