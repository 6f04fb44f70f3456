"""Break lines of the core one at a time, by a seed, and say which breaks no test notices.

    python tests/mutations.py --seed 0 --count 30

A break changes a sign, an index or a constant of one line of losses, policies, training or theory,
in a copy of the tree. The tests of that file run first, and those of all four rooms if they pass.
A break that changes no result is told from a missing test by reading it.
"""

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
ROOMS = ("bandits/losses", "bandits/policies", "bandits/training", "theory")

OPERATORS = {
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.Lt: ("<", ">"), ast.Gt: (">", "<"), ast.LtE: ("<=", "<"), ast.GtE: (">=", ">"),
}  # fmt: skip


class Break(NamedTuple):
    """Text to put in place of a part of one line."""

    file: Path
    line: int
    start: int
    end: int
    new: str


def breaks(file: Path) -> list[Break]:
    """Return every break of a file: operators turned round, numbers raised by one."""
    source = file.read_text()
    # Columns of a tree are bytes.
    lines = [line.encode() for line in source.splitlines()]
    found = []

    def between(left: ast.expr, right: ast.expr, old: str, new: str) -> None:
        if left.end_lineno != right.lineno:
            return
        part = lines[right.lineno - 1][left.end_col_offset : right.col_offset].decode()
        if part.strip() == old:
            at = left.end_col_offset + part.index(old)
            found.append(Break(file, right.lineno, at, at + len(old), new))

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            between(node.left, node.right, *OPERATORS[type(node.op)])
        if isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
            between(node.left, node.comparators[0], *OPERATORS[type(node.ops[0])])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            found.append(Break(file, node.lineno, node.col_offset, node.col_offset + 1, "+"))
        is_number = isinstance(node, ast.Constant) and type(node.value) in (int, float)
        if is_number and node.end_col_offset is not None:
            new = repr(node.value + 1)
            found.append(Break(file, node.lineno, node.col_offset, node.end_col_offset, new))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for child in value if isinstance(value, list) else [value]:
                is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
                if isinstance(child, ast.AST) and not is_docstring:
                    visit(child)

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            visit(node)
    return sorted(set(found))


def choose(seed: int, count: int) -> list[Break]:
    """Return breaks of as many different lines."""
    by_line: dict[tuple[Path, int], list[Break]] = {}
    for room in ROOMS:
        for file in sorted((ROOT / room).glob("*.py")):
            for one in breaks(file):
                by_line.setdefault((file, one.line), []).append(one)
    chance = random.Random(seed)
    return [chance.choice(by_line[line]) for line in chance.sample(sorted(by_line), count)]


def caught(one: Break, tree: Path) -> str:
    """Return which tests fail with the break: the file's own, those of the rooms, or none."""
    name = one.file.relative_to(ROOT)
    place = tree / name
    lines = place.read_bytes().split(b"\n")
    whole = list(lines)
    line = lines[one.line - 1]
    lines[one.line - 1] = line[: one.start] + one.new.encode() + line[one.end :]
    place.write_bytes(b"\n".join(lines))
    own = Path("tests", name.parent, f"test_{name.name}")
    try:
        for tests, said in (([own], "own tests"), ([f"tests/{room}" for room in ROOMS], "others")):
            if (tree / tests[0]).exists() and _fails(tree, tests):
                return said
        return "NONE"
    finally:
        place.write_bytes(b"\n".join(whole))


def _fails(tree: Path, tests: list) -> bool:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", *map(str, tests)]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False)
    return done.returncode != 0


def main() -> None:
    """Print a line for each break, and exit with 1 if one is not noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=30)
    options = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder, "tree")
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "figures", "site"))
        for one in choose(options.seed, options.count):
            verdict = caught(one, tree)
            missed += verdict == "NONE"
            line = one.file.read_bytes().split(b"\n")[one.line - 1]
            old = line[one.start : one.end].decode()
            place = f"{one.file.relative_to(ROOT)}:{one.line}"
            print(f"{verdict:9}  {place}  {old} -> {one.new}  {line.decode().strip()}", flush=True)
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
