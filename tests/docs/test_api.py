"""The API reference: formulas of docstrings become mathematics, all else stays as it is."""

import ast
import importlib.util
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
MATHML = "{http://www.w3.org/1998/Math/MathML}"

spec = importlib.util.spec_from_file_location("build_api", ROOT / "docs" / "api" / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


def docstrings():
    for path in sorted([*ROOT.glob("theory/**/*.py"), *ROOT.glob("bandits/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                yield ast.get_docstring(node) or ""


@pytest.mark.parametrize(
    ("line", "latex"),
    [
        ("θ ← θ + η (q − p)", r"\theta \leftarrow \theta + \eta (q - p)"),
        ("π* = π_ref exp(r/β) / Z.", r"\pi^{*} = \pi _{\mathrm{ref}} \exp (r/\beta ) / Z."),
        ("Σ_ab n_ab log σ(r_a)", r"\sum _{ab} n_{ab} \log \sigma (r_{a})"),
        ("π_ref,t e^{2R/β}", r"\pi _{\mathrm{ref},t} e^{2R/\beta }"),
        ("p2 (Δʳ − Δᶠ)   by at most   η", r"p_{2} (\Delta ^{r} - \Delta ^{f}) \quad "
         r"\text{ by at most } \quad \eta"),
    ],
)  # fmt: skip
def test_a_formula_becomes_latex(line, latex):
    assert build.to_latex(line).split() == latex.split()


def test_every_displayed_formula_is_drawn_and_nothing_else(monkeypatch):
    drawn = []
    monkeypatch.setattr(build, "to_mathml", lambda line: drawn.append(line) or "")
    for docstring in docstrings():
        build.typeset(docstring)
    monkeypatch.undo()
    assert len(drawn) >= 14
    for line in drawn:
        math = ElementTree.fromstring(build.to_mathml(line))
        assert math.tag == f"{MATHML}math"
        said = "".join(math.itertext())
        assert "\\" not in said  # a command that MathML does not know
        for word in re.findall(r"[a-z]{2,}", line.replace("_", " ")):
            assert word in said
    whole = 'Files hold:\n\n    [problem]\n    steps = "Σ"\n\nArgs:\n  x: of\n\n    Σ_t.\n'
    assert build.typeset(whole) == whole.replace("\n\n\n", "\n\n")
