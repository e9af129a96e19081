"""examples/demo.ipynb runs from its first cell to its last, on fewer images; stored without
outputs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jobs
import pytest
from jobs import REPOSITORY

NOTEBOOK = REPOSITORY / "examples" / "demo.ipynb"
PARAMETERS = "TRAIN_IMAGES, VAL_IMAGES, EPOCHS = 192, 40, 2"

needs_jupyter = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("nbclient", "ipykernel"))),
    reason="needs nbclient and ipykernel (extra test)",
)


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs():
    assert [cell["id"] for cell in cells() if cell["outputs"] or cell["execution_count"]] == []


def test_it_tells_of_its_machine_nothing():
    assert str(Path.home()) not in NOTEBOOK.read_text()
    assert set(json.loads(NOTEBOOK.read_text())["metadata"]) == {"kernelspec", "language_info"}


@needs_jupyter
@pytest.mark.usefixtures("one_core")
def test_it_runs_and_shows_its_curves_mistakes_and_a_guess(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    for name, value in jobs.environment(JUPYTER_PLATFORM_DIRS="1").items():
        monkeypatch.setenv(name, value)
    # A kernel of this very Python, whatever others the machine has.
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"})
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (first,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    first.source = PARAMETERS
    folder = tmp_path / "work"
    folder.mkdir()
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()  # raises with the traceback of the cell that fails
    shown = {
        number: "".join(str(output) for output in cell.outputs)
        for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code")
    }
    assert "192 images of 10 classes" in shown[1]
    assert "epoch 2 validation" in shown[2] and "finished=True" in shown[2]
    pictures = [number for number, text in shown.items() if "image/png" in text]
    assert pictures == [3, 5, 6, 7]
    assert "of 40 are wrong" in shown[4]
    assert shown[7].count("%  ") == 3
    assert (folder / "runs" / "notebook" / "checkpoints" / "best.pt").is_file()
