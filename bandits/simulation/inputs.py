"""Inputs as vectors and pairs: arrays, labelled data of pandas or xarray, and files."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bandits.files.comparisons import Comparisons, from_counts, from_frame, from_records
from bandits.files.tables import Vector
from theory import checks
from theory.checks import InvalidInput
from theory.pairs import Pairs, require_pairs_in_support

UNIFORM = "uniform"
"""The reference that gives each arm that the other inputs name the same probability."""


def as_vector(name: str, values: Any) -> Vector:
    """Return one number an arm, with the arms' names where the input has them.

    Args:
      name: of the argument, for refusals.
      values: a `Vector`, a mapping of names to numbers, a pandas Series, an xarray DataArray of one
        dimension, or anything that NumPy takes for ``[K]`` numbers.

    Raises:
      InvalidInput: other shapes, values that are no numbers, names that stand there twice.
    """
    labels: Sequence[Any] | None = None
    if isinstance(values, xr.DataArray) and values.ndim == 1:
        values = values.to_pandas()
    if isinstance(values, Vector):
        values, labels = values.values, values.labels
    elif isinstance(values, Mapping):
        values, labels = list(values.values()), list(values)
    elif isinstance(values, pd.Series):
        named = not isinstance(values.index, pd.RangeIndex)
        values, labels = values.to_numpy(), list(values.index) if named else None
    try:
        numbers = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} must hold numbers, one an arm") from None
    if numbers.ndim != 1:
        raise InvalidInput(f"{name} has shape {numbers.shape}; it must be [K], one number an arm")
    if labels is None:
        return Vector(numbers, None)
    names = tuple(map(str, labels))
    if len(set(names)) < len(names):
        twice = next(label for label in names if names.count(label) > 1)
        raise InvalidInput(f"{name} names the arm {twice!r} twice; give each arm once")
    return Vector(numbers, names)


def as_comparisons(preferences: Any, labels: Sequence[str] | None = None) -> Comparisons:
    """Return the pairs that were compared.

    Args:
      preferences: `Comparisons`; a table ``[K, K]`` of how often row was preferred to column, as an
        array, nested lists, a DataFrame, or a DataArray (whose dimensions may be called winner and
        loser) with the arms along both axes; a DataFrame with the columns of a file; or a list of
        tuples ``(winner, loser)`` or ``(winner, loser, count)``.
      labels: names of the K arms of a table without names.

    Raises:
      InvalidInput: shapes that fit none of these, negative or infinite counts, a pair of an arm
        with itself, no pair at all.
    """
    if isinstance(preferences, Comparisons):
        return preferences
    if isinstance(preferences, xr.DataArray):
        if {str(dim).lower() for dim in preferences.dims} == {"winner", "loser"}:
            preferences = preferences.transpose(*sorted(preferences.dims, key=str, reverse=True))
        both_named = preferences.ndim == 2 and set(preferences.dims) <= set(preferences.coords)
        preferences = preferences.to_pandas() if both_named else preferences.values
        if both_named and list(preferences.index) != list(preferences.columns):
            raise InvalidInput("preferences must name the same arms along both dimensions")
    if isinstance(preferences, pd.DataFrame):
        if list(preferences.index) != list(preferences.columns):
            if all(kind.kind in "iuf" for kind in preferences.dtypes):
                raise InvalidInput(
                    "preferences must name the same arms along rows and columns, or have columns "
                    "such as winner and loser"
                )
            return from_frame(preferences)
        labels, preferences = list(map(str, preferences.columns)), preferences.to_numpy()
    if isinstance(preferences, np.ndarray) and preferences.dtype.kind in "OUS":
        preferences = preferences.tolist()
    if isinstance(preferences, Sequence) and any(
        isinstance(row, tuple) or any(isinstance(cell, str) for cell in row)
        for row in preferences[:1]
        if isinstance(row, Sequence)
    ):
        return _from_rows(preferences)
    try:
        counts = np.asarray(preferences, np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(
            "preferences must be a table [K, K] of numbers, or a list of (winner, loser)"
        ) from None
    return from_counts("preferences", counts, labels)


def _from_rows(rows: Sequence[Any]) -> Comparisons:
    """Return the pairs of rows (winner, loser) or (winner, loser, count)."""
    records = []
    for i, row in enumerate(rows):
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) not in (2, 3):
            raise InvalidInput(
                f"preferences[{i}] is {row!r}; give (winner, loser) or (winner, loser, count)"
            )
        cells = [cell.item() if isinstance(cell, np.generic) else cell for cell in (*row, 1.0)]
        records.append(dict(zip(("winner", "loser", "count"), cells, strict=False)))
    return from_records(records)


def choose_arms(
    reference: Vector | None, others: Mapping[str, Vector], comparisons: Comparisons | None
) -> Sequence[object]:
    """Return the arms' names, in the reference's order; without a reference, all that are named.

    Where nothing names the arms, they are numbered.
    """
    named = [vector.labels for vector in others.values() if vector.labels is not None]
    if reference is not None:
        same = [labels for labels in named if len(labels) == len(reference.values)]
        return reference.labels or (same[0] if same else range(len(reference.values)))
    if comparisons is not None:
        named.append(comparisons.labels)
    if named:
        return list(dict.fromkeys(itertools.chain.from_iterable(named)))
    if not others:
        raise InvalidInput(
            "the reference is uniform, but no other input names arms; add --preferences, --reward "
            "or --target"
        )
    return range(len(next(iter(others.values())).values))


def join(
    vectors: Mapping[str, Vector], comparisons: Comparisons | None = None
) -> dict[str, Vector]:
    """Return the vectors over the arms of all of them together.

    An arm that one has not is excluded there: 0, or −∞ among log-probabilities.

    Raises InvalidInput for a vector without names.
    """
    for name, vector in vectors.items():
        if vector.labels is None:
            raise InvalidInput(f"{name} names no arms, so there is nothing to join by; add labels")
    named = [vector.labels or () for vector in vectors.values()]
    named += [] if comparisons is None else [comparisons.labels]
    labels = tuple(dict.fromkeys(itertools.chain.from_iterable(named)))
    joined = {}
    for name, vector in vectors.items():
        own = pd.Series(vector.values, vector.labels)
        missing = -np.inf if _are_logs(vector) else 0.0
        joined[name] = Vector(own.reindex(labels, fill_value=missing).to_numpy(), labels)
    return joined


def _are_logs(weights: Vector) -> bool:
    """Return whether weights are log-probabilities: none is above 0, and one is below."""
    values = weights.values
    return bool((values <= 0).all() and (values < 0).any())


def to_distribution(name: str, weights: Vector, normalize: bool, pseudocount: float) -> Vector:
    """Return the weights as probabilities.

    They are taken as given, or divided by their sum, after a pseudocount is added. Weights of which
    none is above 0 and one is below are log-probabilities.

    Raises InvalidInput if they are no distribution, with the remedy where there is one.
    """
    checks.require_finite("pseudocount", pseudocount)
    checks.require_nonnegative("pseudocount", pseudocount)
    values = weights.values
    checks.require_arms(name, values)
    if _are_logs(weights):
        if pseudocount:
            raise InvalidInput(f"{name} holds log-probabilities; a pseudocount is for counts")
        if np.isneginf(values).all():
            raise InvalidInput(f"{name} is zero on every arm; at least one must be positive")
        # Sequences have log-probabilities of −100 and less: what they have in common is taken out
        # first where it does not count.
        values = np.exp(values - (values.max() if normalize else 0.0))
        kind = "exp of its log-probabilities"
    else:
        checks.require_finite(name, values)
        checks.require_nonnegative(name, values)
        kind = "it"
    values = values + pseudocount
    total = values.sum()
    if total <= 0 and kind == "it":
        raise InvalidInput(f"{name} is zero on every arm; at least one must be positive")
    if not (normalize or pseudocount) and abs(total - 1) > checks.SUM_TOLERANCE:
        what = name if kind == "it" else f"exp({name}), of log-probabilities,"
        raise InvalidInput(
            f"{what} sums to {total:.8g}; probabilities must sum to 1 (to divide by the sum, add "
            "--normalize)"
        )
    return Vector(values / total, weights.labels)


def require_reachable_pairs(
    reference_log_probs: np.ndarray, pairs: Pairs, labels: Sequence[object]
) -> None:
    """Refuse pairs of a response that the reference excludes."""
    require_pairs_in_support(
        "preferences",
        pairs,
        reference_log_probs,
        labels,
        remedy="give it a probability > 0 there (--pseudocount 0.5 for counts)",
    )
