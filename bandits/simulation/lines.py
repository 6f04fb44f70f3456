"""Split a dataset into the lines of a picture: a method at one value of each hyperparameter."""

from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.colors import to_rgb

from bandits import plotting
from bandits.losses import METHODS
from bandits.training_panel import Style

SYMBOLS = {"beta": "β", "tau": "τ", "delta": "δ", "learning_rate": "learning rate"}
"""Hyperparameters as a legend writes them; it writes the others by their names."""

DARKEST, LIGHTEST = -0.5, 0.6
"""Shares of black (negative) and of white in the colours of the first and the last value."""


@dataclass(frozen=True)
class Line:
    """One method at one value of each swept hyperparameter.

    Attributes:
      method: a name of `bandits.losses.METHODS`.
      values: the swept hyperparameters, by name, that this method depends on.
      data: its part of the dataset, over ``step`` and ``arm``.
      label: for a legend.
      color: the method's; dark for the first value and light for the last.
      diverged: whether what it ended with is no result.
    """

    method: str
    values: dict[str, float]
    data: xr.Dataset
    label: str
    color: tuple[float, float, float]
    diverged: bool

    @property
    def style(self) -> Style:
        """Return the line style: dotted where it diverged."""
        return ":" if self.diverged else "-"


def swept(dataset: xr.Dataset) -> list[str]:
    """Return the names of the swept hyperparameters, in the order of the dimensions."""
    dims = dataset["log_probs"].dims
    return [str(dim) for dim in dims if dim not in ("loss", "step", "arm")]


def split(dataset: xr.Dataset) -> list[Line]:
    """Return the lines of a dataset, method by method; a value that changes nothing is left out.

    Args:
      dataset: of `simulate`: ``log_probs`` over ``loss``, any swept hyperparameters, ``step`` and
        ``arm``.
    """
    lines = []
    for name in dataset["loss"].values:
        method = str(name)
        parts: list[tuple[dict[str, float], xr.Dataset]] = [({}, dataset.sel(loss=name))]
        for dim in swept(dataset):
            parts = [
                (values | more, piece)
                for values, part in parts
                for more, piece in _split_along(part, dim, method)
            ]
        for i, (values, part) in enumerate(parts):
            diverged = _has_diverged(part)
            settings = ", ".join(f"{SYMBOLS.get(k, k)} = {v:g}" for k, v in values.items())
            label = " ".join([plotting.METHOD_LABELS[method], settings]).strip()
            label += " (diverged)" if diverged else ""
            color = _shade(plotting.METHOD_COLORS[method], i, len(parts))
            lines.append(Line(method, values, part, label, color, diverged))
    return lines


def _split_along(
    part: xr.Dataset, dim: str, method: str
) -> list[tuple[dict[str, float], xr.Dataset]]:
    """Return a piece a value, or one piece where the method and its target do not depend on it."""
    log_probs = part["log_probs"].transpose(dim, ...)
    same = all(np.array_equal(log_probs[0], other, equal_nan=True) for other in log_probs)
    moves_target = dim in part["target_log_probs"].dims  # and with it the KLs
    if same and not moves_target and dim not in METHODS[method].hyperparameters:
        return [({}, part.isel({dim: 0}))]
    return [({dim: float(value)}, part.sel({dim: value})) for value in part[dim].values]


def _has_diverged(part: xr.Dataset) -> bool:
    marked = "diverged" in part and bool(part["diverged"].any())
    return marked or bool(part["log_probs"].isel(step=-1).isnull().any())


def _shade(color: str, i: int, count: int) -> tuple[float, float, float]:
    red, green, blue = to_rgb(color)
    if count == 1:
        return red, green, blue
    share = np.linspace(DARKEST, LIGHTEST, count)[i]
    mixed = [c + (share * (1 - c) if share > 0 else share * c) for c in (red, green, blue)]
    return mixed[0], mixed[1], mixed[2]
