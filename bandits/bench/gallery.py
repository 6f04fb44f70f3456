"""What a user waits for: the imports, and each figure from the command line, in fresh processes."""

import functools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence

from bandits.bench.base import Measurement, cost, interleaved, ratio
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
    "mode_seeking": 10,
    "mass_relocation": 10,
    "combinatorial": 90,
    "partial_coverage": 10,
    "displacement": 30,
    "coverage_sweep": 30,
    "rlhf_dpo_equivalence": 30,
    "generation_verification_gap": 30,
    "online_offline_hypotheses": 30,
    "kl_projections": 30,
    "simplex_paths": 30,
    "length_problems": 60,
    "length_models": 60,
    "length_batch_size": 60,
    "length_sample_reuse": 60,
    "overoptimisation": 60,
    "four_aspects": 60,
    "unlabelled_prompts": 60,
}
"""Seconds that a user should wait at most, on two cores; `CATEGORICAL_LIMIT` for the others."""


def import_times(repeats: int) -> Iterator[Measurement]:
    """What `bandits` adds to the import of JAX."""
    workloads = {
        name: functools.partial(_run, [sys.executable, "-c", code])
        for name, code in IMPORTS.items()
    }
    seconds = interleaved(workloads, repeats)
    for name, measured in seconds.items():
        yield cost(name, measured, "s")
    base, *others = IMPORTS
    for name in others:
        yield ratio(f"{name} to {base}", name, base, seconds)


def figure_times(names: Sequence[str] | None = None) -> Iterator[Measurement]:
    """Every figure, then all of them at once with ``--quick``, each twice.

    The first time every program is compiled, the second time compiled programs are read back.
    """
    for name in STUDIES if names is None else names:
        limit = LIMITS.get(name, CATEGORICAL_LIMIT)
        yield from _twice(f"modeseek figures {name}", [name], limit)
    yield from _twice("modeseek figures --quick", ["--quick", *(names or ())], QUICK_LIMIT)


def _twice(name: str, arguments: Sequence[str], limit: float) -> Iterator[Measurement]:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        command = [sys.executable, "-m", "bandits.cli", "figures", *arguments, "--out", folder]
        for which in ("first run", "compiled before"):
            start = time.perf_counter()
            _run(command, environment)
            seconds = time.perf_counter() - start
            yield cost(f"{name}, {which}", [seconds], "s", target=f"<= {limit}", note="once")


def _run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, capture_output=True, env=environment)
