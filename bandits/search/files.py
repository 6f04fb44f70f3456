"""Read the bandit of a search from the user's own files, which its table ``[problem]`` names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np

from bandits.files.comparisons import read_comparisons
from bandits.files.tables import Vector, align, read_vector
from bandits.problems.environments import CategoricalBandit
from bandits.search.entries import FINITE, NONNEGATIVE, read_table, show, under
from bandits.simulation import UNIFORM, UndeterminedWarning, to_distribution
from bandits.simulation.inputs import require_reachable_pairs
from theory import checks
from theory.bradley_terry import RIDGE, fit_tabular
from theory.checks import InvalidInput
from theory.comparison_graph import describe, undetermined
from theory.pairs import Pairs

FILES = "files"
"""What `Spec.environment` is where the bandit is read from files."""

FILE_KEYS = ("reference", "reward", "preferences", "normalize", "pseudocount", "ridge")
"""The keys of ``[problem]`` that say which files, and how they are read."""

FLAGS = {"--normalize": "normalize = true", "--pseudocount 0.5": "pseudocount = 0.5"}
"""Flags of `modeseek simulate` that refusals name, and the entries that say the same here."""


@dataclass(frozen=True)
class FileBandit:
    """A bandit from files, as the numbers that tell it from others.

    Attributes:
      labels: ``[K]``, names of the arms.
      reference: ``[K]``, probabilities.
      reward: ``[K]``, given or fitted to preferences.
    """

    labels: tuple[str, ...]
    reference: tuple[float, ...]
    reward: tuple[float, ...]

    @cached_property
    def bandit(self) -> CategoricalBandit:
        """The bandit itself; it is built once."""
        return CategoricalBandit.from_arrays(np.array(self.reward), np.array(self.reference))


def read_files(problem: Mapping[str, Any], folder: Path) -> FileBandit:
    """Read the bandit that a table ``[problem]`` describes by files.

    Args:
      problem: The table.
      folder: Folder that relative paths start from.

    Raises:
      InvalidInput: Keys that do not fit together, or a file that is refused, with the key in front.
    """
    given = read_table("problem", problem, ("reference",), FILE_KEYS[1:])
    sources = [name for name in ("reward", "preferences") if name in given]
    if len(sources) != 1:
        held, other = ("both", "and") if sources else ("neither", "nor")
        raise InvalidInput(f"problem has {held} 'reward' {other} 'preferences'; give one of them")
    (source,) = sources
    is_uniform = given["reference"] == UNIFORM
    for key, is_idle, why in (
        ("normalize", is_uniform, "the reference is uniform"),
        ("pseudocount", is_uniform, "the reference is uniform"),
        ("ridge", source == "reward", "the reward is given, not fitted"),
    ):
        if key in given and is_idle:
            raise InvalidInput(f"problem.{key} does nothing, for {why}; leave it out")
    normalize = given.get("normalize", False)
    if not isinstance(normalize, bool):
        raise InvalidInput(f"problem.normalize is {show(normalize)}; it must be true or false")
    pseudocount = NONNEGATIVE.number("problem.pseudocount", given.get("pseudocount", 0))
    ridge = NONNEGATIVE.number("problem.ridge", given.get("ridge", RIDGE))

    start = None
    if not is_uniform:
        with _of_file("reference", given["reference"], folder) as path:
            start = to_distribution("reference", read_vector(path), normalize, pseudocount)
    with _of_file(source, given[source], folder) as path:
        if source == "reward":
            start, reward = _with_reward(start, path)
        else:
            start, reward = _with_preferences(start, path, ridge)
        labels = _labels(start)
        for i in np.flatnonzero(np.abs(reward) > FINITE.most)[:1]:
            raise InvalidInput(f"arm {labels[i]!r} has {reward[i]:g}; it must be {FINITE.allowed}")
    return FileBandit(labels, tuple(start.values.tolist()), tuple(reward.tolist()))


@contextmanager
def _of_file(key: str, value: Any, folder: Path) -> Iterator[Path]:
    """Give the path of a key; put the key in front of refusals, and name remedies as keys."""
    if not isinstance(value, str) or not value or "\0" in value:
        uniform = f", or {UNIFORM!r}" if key == "reference" else ""
        raise InvalidInput(f"problem.{key} is {show(value)}; it must be a file's name{uniform}")
    with under(f"problem.{key}"):
        try:
            yield folder / value
        except InvalidInput as error:
            sentence = str(error)
            for flag, entry in FLAGS.items():
                sentence = sentence.replace(flag, entry)
            raise InvalidInput(sentence) from None


def _with_reward(start: Vector | None, path: Path) -> tuple[Vector, np.ndarray]:
    """Return the reference, with names where a file has them, and the reward in its order."""
    reward = read_vector(path)
    checks.require_arms("reward", reward.values)
    start = start or _uniform(len(reward.values), reward.labels)
    aligned = align(reward, "reward", start)
    return Vector(start.values, aligned.labels), aligned.values


def _with_preferences(start: Vector | None, path: Path, ridge: float) -> tuple[Vector, np.ndarray]:
    """Return the reference, and the reward that is fitted to the preferences."""
    compared = read_comparisons(path, None if start is None else _labels(start))
    start = start or _uniform(len(compared.labels), compared.labels)
    pairs = Pairs(compared.winners, compared.losers, compared.counts)
    with np.errstate(divide="ignore"):
        require_reachable_pairs(np.log(start.values), pairs, compared.labels)
    reward = np.asarray(fit_tabular(pairs, ridge, num_arms=len(start.values)), np.float64)
    for finding in undetermined(pairs, len(start.values)):
        warn(describe(finding, compared.labels, ridge), UndeterminedWarning, stacklevel=2)
    return start, reward


def _uniform(num_arms: int, labels: tuple[str, ...] | None) -> Vector:
    return Vector(np.full(num_arms, 1.0 / num_arms), labels)


def _labels(start: Vector) -> tuple[str, ...]:
    """Return the arms' names: their numbers from 0 where no file names them."""
    return start.labels or tuple(map(str, range(len(start.values))))
