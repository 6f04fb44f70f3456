"""Time what a user waits for: imports, and each figure from the command line, in new processes."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial

from bandits.bench.base import Measurement, Row, time_rows
from bandits.studies import STUDIES

IMPORTS = {
    "import jax": "import jax",
    "import bandits": "import jax, bandits",
    "import every name of bandits": (
        "import jax, bandits; [getattr(bandits, n) for n in bandits.__all__]"
    ),
}

CATEGORICAL_LIMIT, QUICK_LIMIT = 20, 100
LIMITS = {
    10: ("mode_seeking", "mass_relocation", "partial_coverage"),
    30: (
        "displacement", "coverage_sweep", "rlhf_dpo_equivalence", "generation_verification_gap",
        "online_offline_hypotheses", "kl_projections", "simplex_paths",
    ),
    60: (
        "length_problems", "length_models", "length_batch_size", "length_sample_reuse",
        "overoptimisation", "four_aspects", "unlabelled_prompts",
    ),
    90: ("combinatorial",),
}  # fmt: skip
"""Seconds that a user should wait at most, on two cores; `CATEGORICAL_LIMIT` for the others."""


def import_times(repeats: int) -> Iterator[Measurement]:
    """Yield what `bandits` adds to the import of JAX."""
    base, *others = IMPORTS
    rows = [Row(name, name, unit="s") for name in IMPORTS]
    rows += [Row(f"{name} to {base}", name, base) for name in others]
    workloads = {name: partial(_run, [sys.executable, "-c", IMPORTS[name]]) for name in IMPORTS}
    yield from time_rows(workloads, rows, repeats)


def figure_times(names: Sequence[str] | None = None) -> Iterator[Measurement]:
    """Time every figure, then all of them at once with ``--quick``, each twice.

    The first time every program is compiled; the second time compiled programs are read back.
    """
    for name in STUDIES if names is None else names:
        limits = [limit for limit, studies in LIMITS.items() if name in studies]
        yield from _twice(f"modeseek figures {name}", [name], (*limits, CATEGORICAL_LIMIT)[0])
    yield from _twice("modeseek figures --quick", ["--quick", *(names or ())], QUICK_LIMIT)


def _twice(name: str, arguments: Sequence[str], limit: float) -> Iterator[Measurement]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        command = [sys.executable, "-m", "bandits.cli", "figures", *arguments, "--out", folder]
        for which in ("first run", "compiled before"):
            start = time.perf_counter()
            _run(command, environment)
            seconds = time.perf_counter() - start
            yield Measurement(
                f"{name}, {which}", seconds, "s", f"<= {limit}", seconds, seconds, "once"
            )


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, capture_output=True, env=environment)
