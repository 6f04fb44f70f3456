"""Every lesson runs top to bottom, shows what is stored, and moves when its sliders do."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from bandits.classroom import STATIC

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
INSTALLS = """\
# Installs modeseek where it is missing, as in Colab; does nothing elsewhere.
import importlib.util

if importlib.util.find_spec("bandits") is None:
    %pip install --quiet "modeseek[notebooks]"
"""
MOVES_SLIDERS = """\
import bandits.classroom

_explore = bandits.classroom.explore

def explore(draw, **controls):
    shown = _explore(draw, **controls)
    if controls:
        for control in shown.children[:-1]:
            for label, value in (control.options[0], control.options[-1]):
                control.value = value
        print(f"moved {len(controls)} controls")

bandits.classroom.explore = explore
"""

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell):
    streams = [output.text for output in cell.outputs if output.output_type == "stream"]
    values = [
        output.data.get("text/plain", "")
        for output in cell.outputs
        if output.output_type == "execute_result" and "image/png" not in output.data
    ]
    return "".join(streams + values)


def test_it_is_stored_as_it_ran_and_reads_well_without_running(path):
    notebook = read(path)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [one for one in outputs if one.output_type == "error" or one.get("name") == "stderr"]
    assert sum("image/png" in one.get("data", {}) for one in outputs) >= 3
    assert path.stat().st_size < 1_500_000


def test_it_installs_itself_and_has_sliders_and_exercises_with_solutions(path):
    notebook = read(path)
    cells = code_cells(notebook)
    assert cells[0].source.strip() == INSTALLS.strip()
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    moved = [cell for cell in cells if re.search(r"^explore\(\w+, ", cell.source, re.M)]
    assert 2 <= len(moved) <= 3
    exercises = [
        i for i, cell in enumerate(notebook.cells)
        if cell.cell_type == "markdown" and cell.source.startswith("### Exercise")
    ]  # fmt: skip
    assert len(exercises) >= 2
    for i in exercises:
        solution = notebook.cells[i + 1]
        assert solution.cell_type == "code"
        assert solution.source.startswith("# @title Solution")
        assert solution.metadata["tags"] == ["solution"]
        assert solution.metadata["jupyter"] == {"source_hidden": True, "outputs_hidden": True}
        assert solution.metadata["cellView"] == "form"
        assert re.search(r"^assert ", solution.source, re.M)


def test_it_runs_top_to_bottom_prints_what_is_stored_and_moves_its_sliders(
    path, tmp_path, monkeypatch
):
    monkeypatch.delenv(STATIC, raising=False)
    stored = read(path)
    running = read(path)
    running.cells.insert(0, nbformat.v4.new_code_cell(MOVES_SLIDERS))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(running, timeout=300, kernel_name="python3", resources=resources).execute()
    moved = 0
    for before, after in zip(code_cells(stored), code_cells(running)[1:], strict=True):
        said, says = printed(before), printed(after)
        if says.startswith("moved "):
            moved += 1
            continue
        assert same_but_for_rounding(said, says), f"stored {said!r}, printed {says!r}"
    assert moved >= 2


def same_but_for_rounding(first, second):
    """Equal texts, numbers within 2%: another processor rounds otherwise."""
    number = r"[-+]?\d+(?:[.,]\d+)*(?:[eE][-+]?\d+)?"
    if re.sub(number, "#", first).split() != re.sub(number, "#", second).split():
        return False
    values = [
        np.array([float(text.replace(",", "")) for text in re.findall(number, one)])
        for one in (first, second)
    ]
    return np.allclose(*values, rtol=0.02, atol=2e-3)
