"""Sweep into a store as users do: time and peak memory of a million runs, and T24's search.

Every sweep is the command in a process of its own, whose memory the system measures.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bandits.bench.base import TIMES, Measurement
from bandits.search import plan, read_spec
from bandits.sweeps.programs import lanes
from bandits.sweeps.stored import stored_sweep

EXAMPLES = Path(__file__).parents[2] / "examples"
"""The repository's examples: an installation from a wheel does not have them."""

NO_EXAMPLES = "examples/ is not here; run it in the repository"

RATES, TENTH = "{log = [0.01, 10.0, 50]}", "{log = [0.01, 10.0, 5]}"
"""The axis of the million that is cut to a tenth."""

FLAT = "<= 1.1"
"""Peak memory of a million runs over that of a hundred thousand."""


def million_runs() -> Iterator[Measurement]:
    """Yield the time, and peak memory beside that of a tenth of the runs."""
    name = "sweep of a million runs into a store: 300 exact updates, K = 100"
    spec = EXAMPLES / "mass_relocation_sweep.toml"
    if not spec.exists():
        yield Measurement(name, None, "s", note=NO_EXAMPLES)
        return
    with tempfile.TemporaryDirectory() as folder:
        tenth = Path(folder) / "tenth.toml"
        tenth.write_text(spec.read_text().replace(RATES, TENTH))
        _, small = _sweep(tenth, Path(folder))
        seconds, large = _sweep(spec, Path(folder))
    yield Measurement(name, seconds, "s", note="start of Python and files included; measured once")
    yield Measurement("its peak memory", large / 2**20, "MiB")
    yield Measurement("its peak memory over that of 100,000 runs", large / small, TIMES, FLAT)


def t24_search() -> Iterator[Measurement]:
    """Estimate what T24's whole search would take here, from a few blocks of its runs."""
    name = "T24's search, whole"
    spec = EXAMPLES / "t24_search.toml"
    if not spec.exists():
        yield Measurement(name, None, "h", note=NO_EXAMPLES)
        return
    with tempfile.TemporaryDirectory() as folder:
        path, planned = Path(folder) / "store.zarr", plan(read_spec(spec))
        stored = stored_sweep(path=path, devices=lanes(), **vars(planned))
        seconds = stored.estimate(stored.runs) or 0.0
    note = f"estimated for {stored.runs:,} trainings of the published network"
    yield Measurement(name, seconds / 3600, "h", note=note)


MEASURED = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""Program that starts the command: a child's peak counts what its parent held at the fork."""


def _sweep(spec: Path, folder: Path) -> tuple[float, float]:
    """Return the seconds of `modeseek sweep`, and its bytes of memory at the peak."""
    command = [sys.executable, "-m", "bandits.cli", "sweep", str(spec)]
    command += ["--out", str(folder / f"{spec.stem}.zarr")]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return time.perf_counter() - start, unit * float(done.stdout)
