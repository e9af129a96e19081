"""Reads back what a run gave to its loggers."""

from __future__ import annotations

import csv
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs import wait_for

from pipeline.train.events import read_metrics
from pipeline.train.monitor.observer import numbers

Points = dict[str, list[tuple[int, float]]]
"""(images seen, value) of each curve by its name, in the order in which they were given."""

_BLOCK = 32768  # W&B's files are logs in blocks, of records in pieces: LevelDB's form
_WHOLE, _LAST = 1, 4


def of_metrics(run: Path) -> Points:
    """The curves of metrics.jsonl, which every logger should have."""
    found: Points = {}
    for line in read_metrics(run / "metrics.jsonl"):
        if line["event"] in ("train", "val"):
            for name, value in numbers(line):
                found.setdefault(name, []).append((line["position"], value))
    return found


def of_csv(run: Path) -> Points:
    """The curves of its tables."""
    found: Points = {}
    for event in ("train", "val"):
        with open(run / "csv" / f"{event}.csv", encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                line = {name: json.loads(text) for name, text in row.items() if text}
                for name, value in numbers({"event": event, **line}):
                    found.setdefault(name, []).append((line["position"], value))
    return found


def of_mlflow(run: Path) -> Points:
    """The curves in MLflow's files beside the run."""
    client, run_id = mlflow_run(run)
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in client.get_run(run_id).data.metrics
    }


def mlflow_run(run: Path) -> tuple[Any, str]:
    """A client of these files, and the run's identity."""
    import os

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    from mlflow.tracking import MlflowClient

    client = MlflowClient((run.parent / ".mlruns").as_uri())
    return client, json.loads((run / "mlflow.json").read_text())["run_id"]


def of_wandb(run: Path) -> Points:
    """The curves in W&B's only file of the run, written offline, once that is whole: the program
    of W&B that writes it does so soon after the run has ended (0.31)."""
    found: Points = {}
    for record in wait_for(lambda: _ended(wandb_file(run)), "the end of W&B's file"):
        if record.WhichOneof("record_type") == "history":
            items = {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for name, value in items.items():
                if "/" in name:
                    found.setdefault(name, []).append((items["position"], value))
    return found


def wandb_file(run: Path) -> Path:
    """W&B's only file of the run, whose name holds the identity."""
    run_id = json.loads((run / "wandb.json").read_text())["run_id"]
    (file,) = (run / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
    return file


def _ended(file: Path) -> list[Any]:
    """The records of a file that has its last one."""
    records = list(_records(file))
    return records if records and records[-1].WhichOneof("record_type") == "exit" else []


def _records(file: Path) -> Iterator[Any]:
    from wandb.proto.wandb_internal_pb2 import Record

    stored, at, piece = file.read_bytes(), 7, b""
    while at + 7 <= len(stored):
        left = _BLOCK - at % _BLOCK
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", stored[at : at + 7])
        piece += stored[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (_WHOLE, _LAST):
            yield Record.FromString(piece)
            piece = b""
