"""Make the gallery: figures as files, and a page of them all with their questions and claims."""

import inspect
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bandits import plotting
from bandits.files import whole_files
from bandits.studies import Claim, Study

PAGE = "README.md"
"""What code hosts show of a folder."""

HEAD = """# Gallery

Every figure with its claims as measured: `modeseek figures --out FOLDER` writes this
page, and each picture also as PDF and its data as NetCDF.
"""

SECTION = """
## {study.name}

{study.question} *{study.source}.* [Code]({code}).

![{study.question}]({study.name}.png)

```
{commands}
```

| holds | claim | effect | 95% interval |
|---|---|---|---|
{rows}
"""

VERDICTS = {True: "yes", False: "**no**"}


@dataclass(frozen=True)
class Made:
    """Hold what came of a study.

    Attributes:
      paths: Its PNG, its PDF, and its data as NetCDF.
      claims: What was measured.
      seconds: The time it took.
    """

    paths: list[Path]
    claims: list[Claim]
    seconds: float


def make_figure(study: type[Study], folder: Path, quick: bool = False) -> Made:
    """Run a study and write its figure and data; all of its files appear, or none."""
    start = time.perf_counter()
    dataset = study.measure(quick)
    figure = study.draw(dataset)
    paths = [folder / f"{study.name}.{kind}" for kind in ("png", "pdf", "nc")]
    with whole_files(*paths) as parts:
        plotting.save(figure, *parts[:2])
        dataset.to_netcdf(parts[2], engine="scipy")
    return Made(paths, study.claims(dataset), time.perf_counter() - start)


def make_page(measured: Iterable[tuple[type[Study], list[Claim]]], folder: Path) -> str:
    """Return Markdown that stands beside the pictures in ``folder`` and links to the code."""
    measured = list(measured)
    index = [f"- [{e.name}](#{e.name}): {e.question}" for e, _ in measured]
    parts = [_describe(study, claims, folder) for study, claims in measured]
    return "\n".join([HEAD, *index, *parts])


def _describe(study: type[Study], claims: list[Claim], folder: Path) -> str:
    """Return the section of a study."""
    name = study.name
    commands = [f"modeseek figures {name}", f"modeseek claims {name}"]
    if study.animate:
        commands.append(f"modeseek animate {name} --out {name}.html")
    code = Path(os.path.relpath(inspect.getfile(study.run), folder.resolve())).as_posix()
    lines = "\n".join
    return SECTION.format(
        study=study, code=code, commands=lines(commands), rows=lines(map(_row, claims))
    )


def _row(claim: Claim) -> str:
    statement = f"{claim.statement}. *{claim.note}*" if claim.note else claim.statement
    verdict = VERDICTS[claim.holds] if claim.asserted or claim.holds else "no, not asserted"
    cells = (verdict, statement, f"{claim.effect:.4g}", f"{claim.low:.4g} to {claim.high:.4g}")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
