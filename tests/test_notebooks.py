"""Every notebook runs from a fresh kernel, and what is committed was executed and survives a host that strips scripts."""

import os
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[Any]:
    import nbformat

    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.source.strip()]


def test_the_committed_notebook_was_executed_and_its_pictures_need_no_script(path: Path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert pictures, "a reader on a code host sees no picture"
    # A host that shows the richest form it can would prefer HTML in the same output, and strip it.
    assert not [output for output in pictures if "text/html" in output["data"]]


def test_the_notebook_says_what_it_found_and_asserts_it(path: Path):
    cells = code_cells(path)
    assert sum("assert " in cell.source for cell in cells) >= 3
    assert not [cell for cell in cells if "def " in cell.source or "class " in cell.source], "notebooks hold no algorithms"


@pytest.mark.notebook
def test_the_notebook_runs_from_a_fresh_kernel(path: Path, tmp_path: Path):
    import nbformat
    from nbclient import NotebookClient

    # Kernels talk over files and sockets of their own: nothing of the checkout is written.
    os.environ.setdefault("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}).execute()
    assert not [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs if o.output_type == "error"]
