"""Run a grid: blocks of runs, vmapped and shared out over devices, into a labelled dataset."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import xarray as xr

from bandits.problems.metrics import DIVERGED_AT
from bandits.sweeps.grid import Grid, Place
from bandits.sweeps.programs import BLOCK_RUNS, Compiler
from bandits.sweeps.progress import Progress
from theory import checks


class DivergenceWarning(UserWarning):
    """Say that some runs of a sweep gave NaN."""


def sweep(
    run: Callable[..., Any],
    axes: Mapping[str, Any],
    *,
    fixed: Mapping[str, Any] | None = None,
    dims: Sequence[str] | Mapping[str, Sequence[str]] = (),
    coords: Mapping[str, Any] | None = None,
    attributes: Mapping[str, Mapping[str, Any]] | None = None,
    memory_limit: int = 2**30,
    block_runs: int = BLOCK_RUNS,
    devices: Sequence[jax.Device] | None = None,
    progress: bool | None = None,
) -> xr.Dataset:
    """Call ``run`` on every point of a grid and label the results.

    Numeric axes (numbers, or arrays stacked along a leading dimension) and named `choices` are
    vmapped. Every other axis (strings, functions, numbers marked `static`) changes the program,
    which is compiled once for each of its values.

    The same grid gives the same bits whatever the memory and the number of devices: XLA rounds
    differently for different batch sizes, so runs are cut into blocks whose size follows from the
    shapes alone, and every block is executed by the same program.

    Args:
      run: A traceable function of keyword arguments, one for each axis and each fixed argument. It
        returns a mapping (or dataclass) of names to arrays.
      axes: Argument name -> values, in the order of the dataset's dimensions.
      fixed: Argument name -> pytree of arrays that is the same in every run. Pass shared arrays
        here rather than close over them: XLA would spend seconds folding constants.
      dims: Names of the dimensions that the results have of their own, in order, such as
        ``["step", "arm"]`` (a result with one of its own takes the first); or a mapping, where
        results differ. The default is ``<name>_dim_0`` and so on.
      coords: Coordinates of those dimensions.
      attributes: Attributes of a variable or coordinate, such as ``{"kl": {"units": "nats"}}``.
      memory_limit: Bytes of device memory for the blocks under way, > 0; one block always is.
      block_runs: Most runs in one vmapped program, at least 1; it is part of what fixes the bits.
        The default suits runs of a few kilobytes; runs that carry a network are faster in fours.
      devices: Devices that share the runs, by default all of this process, and all cores of a CPU;
        each takes whole blocks. On a CPU a program that calls LAPACK or Python does one block at a
        time.
      progress: Whether to show progress; by default on a terminal, for work of over a second.

    Returns:
      A dataset with one dimension an axis, then the results' own. NaN results are kept, and a
      DivergenceWarning names the first, with the step if a result ``diverged_at`` says it.

    Raises:
      InvalidInput: For an axis that is empty or that ``run`` does not take, an argument that no
        axis sets, a limit <= 0, and results whose shape differs between programs.

    >>> from bandits import static, sweep
    >>> found = sweep(lambda x, power: {"y": x**power}, {"x": [1.0, 2.0], "power": static([2, 3])})
    >>> found["y"].sel(x=2.0).values.tolist()
    [4.0, 8.0]
    """
    checks.require_positive("memory_limit", memory_limit)
    compiler = Compiler.of(run, axes, fixed, block_runs, devices)
    grid = compiler.grid
    results: dict[str, np.ndarray] = {}
    with Progress(math.prod(grid.shape), progress) as bar:
        for program in compiler.programs():
            for runs, values in program.execute(memory_limit=memory_limit):
                _store(results, values, runs, program.place, grid)
                bar.advance(len(runs))
    dataset = label(grid, results, dims, coords or {}, attributes or {})
    _warn_of_divergence(dataset, grid)
    return dataset


def _store(
    results: dict[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    runs: np.ndarray,
    place: Place,
    grid: Grid,
) -> None:
    """Put a block of runs into the arrays of the whole grid; the first block makes them."""
    if results and results.keys() != values.keys():
        raise checks.InvalidInput(
            f"the run returns {sorted(values)} for {_describe(grid, place)} but {sorted(results)} "
            "before; every program must return the same names"
        )
    for name, value in values.items():
        own = value.shape[1:]
        if name not in results:
            results[name] = np.empty(grid.shape + own, value.dtype)
        whole = results[name]
        if whole.dtype != value.dtype:
            whole = results[name] = whole.astype(np.result_type(whole, value))
        if whole.shape[len(grid.shape) :] != own:
            raise checks.InvalidInput(
                f"{name} has shape {own} for {_describe(grid, place)} but "
                f"{whole.shape[len(grid.shape) :]} before; every program must return one shape"
            )
        lengths = tuple(len(axis) for axis in grid.numeric)
        at = tuple(slice(None) if index is None else index for index in place)
        program = whole[(*at, ...)]  # a view, also where every axis is static
        if lengths:
            program[np.unravel_index(runs, lengths)] = value
        else:
            program[...] = value[0]


def label(
    grid: Grid,
    results: Mapping[str, np.ndarray],
    dims: Sequence[str] | Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
    attributes: Mapping[str, Mapping[str, Any]],
) -> xr.Dataset:
    """Return results ``[*grid, ...]`` as one dataset, with the labels of the grid and their own."""
    outer = tuple(axis.name for axis in grid.axes)
    variables = {
        name: (outer + _own_dims(name, array.ndim - len(outer), dims, results), array)
        for name, array in results.items()
    }
    labels = {axis.name: axis.labels for axis in grid.axes}
    dataset = xr.Dataset(variables, coords={**labels, **coords})
    for name, entries in attributes.items():
        if name in dataset.variables:
            dataset[name].attrs.update(entries)
    return dataset


def _own_dims(
    name: str,
    count: int,
    dims: Sequence[str] | Mapping[str, Sequence[str]],
    results: Mapping[str, Any],
) -> tuple[str, ...]:
    """Return the names of a result's own dimensions, checked against its shape."""
    unnamed = tuple(f"{name}_dim_{i}" for i in range(count))
    if not isinstance(dims, Mapping):
        return (*dims[:count], *unnamed[len(dims) :])
    for key in dims:
        checks.require_known("result in dims", key, results)
    named = tuple(dims.get(name, unnamed))
    if len(named) != count:
        raise checks.InvalidInput(
            f"dims names {len(named)} dimensions of {name}; it has {count} of its own"
        )
    return named


def _warn_of_divergence(dataset: xr.Dataset, grid: Grid) -> None:
    """Warn once for each result with NaN; name the first run that gave it."""
    outer = [axis.name for axis in grid.axes]
    for name, variable in dataset.data_vars.items():
        if variable.dtype.kind != "f":
            continue
        diverged = variable.isnull().any([d for d in variable.dims if d not in outer])
        count = int(diverged.sum())
        if count:
            first = np.argwhere(diverged.values)[0]
            where = ", ".join(
                f"{axis.name}={axis.labels[i]}" for axis, i in zip(grid.axes, first, strict=True)
            )
            if DIVERGED_AT in dataset:
                where += f", after {int(dataset[DIVERGED_AT].values[tuple(first)])} steps"
            warnings.warn(
                f"{count} of {diverged.size} runs gave NaN in {name}, the first at {where}",
                DivergenceWarning,
                stacklevel=3,
            )


def _describe(grid: Grid, place: Place) -> str:
    return ", ".join(
        f"{axis.name}={axis.labels[index]}"
        for axis, index in zip(grid.axes, place, strict=True)
        if axis.is_static
    )
