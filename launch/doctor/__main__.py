"""The check before a job: `python -m launch.doctor --config configs/demo.yaml`.

One machine is checked by the command itself. All nodes of an allocation:
`srun --ntasks-per-node=1 python -m launch.doctor --node -- --config FILE | python -m launch.doctor
--collect`; `launch.slurm` does the same at the start of each job.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from launch.doctor.check import Check, Facts
from launch.doctor.judge import facts, judge
from pipeline.config import ConfigError, names_for
from pipeline.config.parser import program
from pipeline.config.reading import load_config
from pipeline.config.setting import home
from pipeline.system.console import say
from pipeline.system.failure import ExitCode, Reported, run_command
from pipeline.system.launched import Engine
from pipeline.system.words import printable

MARKER = "trainyard-node"
# srun forwards a line of more than 1024 bytes in several messages, and another node's may come
# between them: with Slurm 22.05, 224 of 2400 lines of 5000 bytes were broken, none of 900.
_LINE_BYTES = 900


def main(argv: list[str]) -> None:
    """Checks this machine, or prints its facts, or judges the facts that other nodes printed.

    Raises `Reported` with code 2 after the table if a check failed.
    """
    options, settings = _parse(argv)
    if options.collect:
        nodes = parse_node_lines(sys.stdin.read())
    else:
        nodes = [_own_facts(options, settings)]
    if options.node:
        # One write: the lines of this node stay together where the pipe allows it.
        sys.stdout.write(node_lines(nodes[0]))
        return
    checks = judge(nodes, engine=options.engine)
    if options.json:
        say(json.dumps({"nodes": nodes, "checks": [dataclasses.asdict(c) for c in checks]}))
    else:
        say(*table(checks).split("\n"))
    failed = [check.name for check in checks if check.status == "fail"]
    if failed:
        raise Reported(f"failed: {', '.join(failed)}", ExitCode.WRONG_INPUT)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The doctor's own options, and the settings of the training among or after them."""
    parser = argparse.ArgumentParser(
        prog=program("launch.doctor"),
        description="Checks a machine, or all nodes of a job, before training starts there.",
        epilog="Any setting of python -m pipeline.train may follow, --config FILE too: then its "
        "data, run directory, device and norm layer are checked. Ends with 2 if a check failed.",
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--json", action="store_true", help="print facts and checks as JSON")
    what.add_argument(
        "--node", action="store_true", help="print this node's facts, for --collect to read"
    )
    parser.add_argument(
        "--collect", action="store_true", help="judge the nodes whose facts come on stdin"
    )
    parser.add_argument(
        "--engine", choices=get_args(Engine), help="what is to connect the ranks; else either"
    )
    parser.add_argument(
        "--run-dir", type=lambda text: Path(home(text)), metavar="D", help="folder of the run"
    )
    for setting in names_for("doctor"):
        parser.add_argument(
            f"--{_short(setting)}", dest=setting, metavar="X", help=f"short for --{setting}"
        )
    end = argv.index("--") if "--" in argv else len(argv)
    options, settings = parser.parse_known_args(argv[:end])
    settings += argv[end + 1 :]
    for setting in names_for("doctor"):
        if getattr(options, setting) is not None:
            settings.append(f"--{setting}={getattr(options, setting)}")
    if options.collect and (options.node or settings or options.run_dir):
        raise ConfigError("--collect reads what the nodes found: give the settings to --node")
    return options, settings


def _short(setting: str) -> str:
    """The option's name: data-root for data.root, as a root could be any; else the last part."""
    return setting.replace(".", "-") if setting.startswith("data.") else setting.split(".")[1]


def _own_facts(options: argparse.Namespace, settings: list[str]) -> Facts:
    """The facts of this machine; without a configuration no data and no run directory."""
    config = load_config(settings)
    named = {argument.partition("=")[0] for argument in settings}
    a_run = "--config" in named
    data = config.data if a_run or "--data.root" in named else None
    run_dir = options.run_dir
    if run_dir is None and (a_run or named & {"--run.dir", "--run.name"}):
        run_dir = config.run.path
    device, norm, amp = config.run.device, config.model.norm, config.optim.amp
    return facts(run_dir, data, device, norm, amp)


def node_lines(node: Facts) -> str:
    """The facts of a node as lines that `parse_node_lines` finds in the output of many nodes."""
    text = json.dumps(node)
    pieces = [text[at : at + _LINE_BYTES] for at in range(0, len(text), _LINE_BYTES)]
    sender = f"{node['node']}.{os.getpid()}"
    numbered = enumerate(pieces, start=1)
    return "".join(f"{MARKER} {sender} {n}/{len(pieces)} {piece}\n" for n, piece in numbered)


def parse_node_lines(text: str) -> list[Facts]:
    """The facts of every node that printed them with `--node`, in the order of their names.

    Other lines, and what srun --label puts before a line, are passed over. A node whose lines are
    not all there or are damaged is left out: `judge` names it when it knows the ranks.
    """
    pieces: dict[str, dict[int, str]] = {}
    totals: dict[str, int] = {}
    for line in text.split("\n"):
        words = line.partition(f"{MARKER} ")[2].rstrip("\r").split(" ", 2)
        number, _, total = words[1].partition("/") if len(words) == 3 else ("", "", "")
        if number.isdecimal() and total.isdecimal():
            pieces.setdefault(words[0], {})[int(number)] = words[2]
            totals[words[0]] = int(total)
    nodes = []
    for sender, found in pieces.items():
        try:
            nodes.append(json.loads("".join(found[n + 1] for n in range(totals[sender]))))
        except (KeyError, ValueError):
            continue
    return sorted(nodes, key=lambda node: str(node["node"]))


def table(checks: Sequence[Check]) -> str:
    """The checks as a table: status, name and what was found in columns, the fix below."""
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.found}")
        if check.cure:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.cure}")
    count: dict[Any, int] = {s: sum(c.status == s for c in checks) for s in ("fail", "warn", "ok")}
    lines.append(f"{count['fail']} failed, {count['warn']} to look at, {count['ok']} ok")
    return "\n".join(map(printable, lines))


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
