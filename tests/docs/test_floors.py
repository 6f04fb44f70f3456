"""The README's floor plan is the tree, and imports point down it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bandits"

# A twin stands beside what it replaces, and is loaded when that is called.
TWINS = {("kernels", "losses"), ("kernels", "training")}


def floors():
    """Return the number of each room's floor, 0 the highest."""
    plan = (ROOT / "README.md").read_text().split("```\n__main__.py", 1)[1].split("```", 1)[0]
    lines = ("__main__.py" + plan).splitlines()
    names = [re.match(r"(?:[a-z_]+(?:\.py|/)\s+)+", line).group().split() for line in lines]
    return {name.removesuffix(".py").rstrip("/"): i for i, row in enumerate(names) for name in row}


def imported(file):
    """Return the rooms of the package that a module imports, at any place in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for path in paths:
            package, *inside = path.split(".")
            if package == "bandits" and inside and inside[0] in floors():
                yield inside[0]


def test_every_room_stands_on_one_floor():
    rooms = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/*.py")}
    assert rooms - {"__init__"} == set(floors())


@pytest.mark.parametrize("room", floors())
def test_imports_point_down(room):
    files = list((PACKAGE / room).rglob("*.py")) or [PACKAGE / f"{room}.py"]
    below = floors()
    for file in files:
        higher = {other for other in imported(file) if below[other] < below[room]}
        assert {(room, other) for other in higher} <= TWINS, file


def test_theory_imports_nothing_of_the_simulation():
    code = "\n".join(file.read_text() for file in (ROOT / "theory").glob("*.py"))
    assert not re.search(r"^\s*(from|import) bandits", code, re.MULTILINE)
