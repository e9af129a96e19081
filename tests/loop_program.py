"""Runs a program like `python program.py`, but kills it, as kill -9 does, when it has replaced a
file so many times: python loop_program.py TIMES program.py"""

from __future__ import annotations

import os
import runpy
import signal
import sys

times, program = int(sys.argv[1]), sys.argv[2]
left, replace = times, os.replace


def replace_and_die(*arguments: str) -> None:
    global left
    replace(*arguments)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    os.replace = replace_and_die
    runpy.run_path(program, run_name="__main__")
