"""Write the API reference: pages of the docstrings, their displayed formulas typeset.

    python docs/api/build.py FOLDER

A formula stands in a docstring as it is read aloud, θ ← θ + η (q − p), on lines of its own. Here it
becomes MathML, which browsers draw themselves.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from pathlib import Path

import pdoc
import pdoc.render
from latex2mathml.converter import convert

PACKAGES = ("theory", "bandits")

MATHEMATICAL = re.compile(r"[πθηβσμλ∇ΣΠ∘Δ]|\b[A-Z]_[a-z]\b")
SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:")

LETTERS = {
    "π": r"\pi", "θ": r"\theta", "η": r"\eta", "β": r"\beta", "σ": r"\sigma", "μ": r"\mu",
    "λ": r"\lambda", "ξ": r"\xi", "τ": r"\tau", "Δ": r"\Delta", "∇": r"\nabla", "Σ": r"\sum",
    "Π": r"\prod", "√": r"\sqrt", "∘": r"\circ", "·": r"\cdot", "←": r"\leftarrow",
    "∝": r"\propto", "‖": r"\|", "⟺": r"\iff", "∞": r"\infty", "≻": r"\succ", "≈": r"\approx",
    "−": "-", "<=": r"\le", ">=": r"\ge", "²": "^{2}", "ʳ": "^{r}", "ᶠ": "^{f}", "′": "'",
}  # fmt: skip
FUNCTIONS = ("log", "exp", "max", "min")
NAMES = ("KL", "ref")


def typeset(docstring: str) -> str:
    """The docstring with MathML where it displays formulas."""
    shown, in_section = [], False
    for block in re.split(r"\n\s*\n", docstring):
        lines = block.split("\n")
        if lines[0].strip() in SECTIONS:
            in_section = True
        elif not lines[0].startswith(" "):
            in_section = False
        is_formula = all(line.startswith("    ") for line in lines) and MATHEMATICAL.search(block)
        if is_formula and not in_section and '"' not in block:
            block = "\n".join(f"<p>{to_mathml(line.strip())}</p>" for line in lines)
        shown.append(block)
    return "\n\n".join(shown)


def to_mathml(line: str) -> str:
    """A line of formulas, with the words and the wide gaps between them."""
    return convert(to_latex(line), display="block")


def to_latex(line: str) -> str:
    r"""As in θ ← θ + η (q − p): \theta \leftarrow \theta + \eta (q - p)."""
    # Words of two letters and more are text, but for functions and the names of quantities.
    line = re.sub(r"\s{2,}", lambda gap: r" \quad ", line)
    line = re.sub(r"_([A-Za-z]{1,4}|\d)(?:,([a-z]))?(?![A-Za-z])", _subscript, line)
    line = re.sub(r"√\(([^()]*)\)", r"√{\1}", line)
    line = re.sub(r"(?<![\\A-Za-z{_])([A-Za-z]{2,}(?: (?=[a-z]{2,}))?)+", _word, line)
    line = re.sub(r"\b([pqc])([12])\b", r"\1_{\2}", line)
    for sign, latex in LETTERS.items():
        line = line.replace(sign, f"{latex} " if latex[-1].isalpha() else latex)
    return line.replace(r"\pi *", r"\pi^{*}").replace(r"\pi '", r"\pi'")


def _subscript(match: re.Match[str]) -> str:
    name, index = match[1], match[2]
    inner = rf"\mathrm{{{name}}}" if len(name) > 2 else name
    return f"_{{{inner}{',' + index if index else ''}}}"


def _word(match: re.Match[str]) -> str:
    word = match[0]
    if word in FUNCTIONS:
        return rf"\{word} "
    if word in NAMES:
        return rf"\mathrm{{{word}}}"
    return rf"\text{{ {word} }}"


class Written:
    """An annotation as it stands in the source: Float[Array, "K"], not the union that it means."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def write_annotations(package: str) -> None:
    """Give every function of a package its annotations as written."""
    root = importlib.import_module(package)
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        module = importlib.import_module(found.name)
        tree = ast.parse(inspect.getsource(module))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            obj = inspect.unwrap(getattr(module, function.name, None) or _nothing)
            if getattr(obj, "__module__", "") != module.__name__:
                continue
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            annotations = {one.arg: one.annotation for one in arguments} | {
                "return": function.returns
            }
            obj.__annotations__ = {
                name: Written(ast.unparse(annotation))
                for name, annotation in annotations.items()
                if annotation
            }


def _nothing() -> None:
    """Stands for functions within others, which have no page."""


def main(folder: Path) -> None:
    """One page a module."""
    for package in PACKAGES:
        write_annotations(package)
    pdoc.render.configure(
        docformat="google",
        template_directory=Path(__file__).parent,
        footer_text="modeseek",
        search=True,
    )
    pdoc.render.env.filters["typeset"] = typeset
    pdoc.pdoc(*PACKAGES, output_directory=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
