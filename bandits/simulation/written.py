"""Write a simulation: pictures, the labelled dataset, and tables for other programs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from bandits import plotting
from bandits.files import whole_files
from bandits.simulation.panel import panel
from bandits.simulation.picture import plot

MOST_ROWS = 200_000
"""Most rows of the table of probabilities; a longer one has the first and the last step alone."""

FILES = ("trajectory.png", "trajectory.pdf", "trajectory.nc", "trajectory.csv")
TABLES = ("arms.csv", "probabilities.csv")
OF_PAIRS = ("training.png", "training.pdf")


def paths(folder: Path, with_pairs: bool) -> list[Path]:
    """Return the files that `write` makes in a folder."""
    names = (*FILES, *TABLES, *(OF_PAIRS if with_pairs else ()))
    return [folder / name for name in names]


def write(dataset: xr.Dataset, files: Sequence[Path]) -> None:
    """Write a simulation into the files of `paths`; they appear together or not at all.

    Raises InvalidInput if one cannot be written.
    """
    figure = plot(dataset)
    training = panel(dataset) if len(files) > len(FILES + TABLES) else None
    with whole_files(*files) as parts:
        plotting.save(figure, *parts[:2])
        as_netcdf(dataset).to_netcdf(parts[2], engine="scipy")
        dataset.drop_dims("arm").to_dataframe().to_csv(parts[3])
        arms_table(dataset).to_csv(parts[4], index=False)
        probabilities_table(dataset).to_csv(parts[5], index=False)
        if training is not None:
            plotting.save(training, *parts[6:])


def as_netcdf(dataset: xr.Dataset) -> xr.Dataset:
    """Return the dataset with the types that a NetCDF file of version 3 holds."""
    return dataset.assign(
        {name: v.astype("int8") for name, v in dataset.data_vars.items() if v.dtype == bool}
    )


def arms_table(dataset: xr.Dataset) -> pd.DataFrame:
    """Return a row an arm, method and swept value: who won.

    Columns: the arm (and its prompt), reference, learned reward, target, final probability, and
    the rise of log π in nats.
    """
    final = dataset["log_probs"].isel(step=-1)
    named = {
        "reference": np.exp(dataset["reference_log_probs"]),
        "target": np.exp(dataset["target_log_probs"]),
        "probability": np.exp(final),
        "rise_in_nats": final - dataset["reference_log_probs"],
    }
    for name in ("learned_reward", "in_pairs"):
        if name in dataset:
            named[name] = dataset[name]
    first = [name for name in ("prompt", "arm") if name in dataset.coords]
    table = xr.Dataset(named).drop_vars("step").to_dataframe().reset_index()
    others = [name for name in table.columns if name not in first]
    return table[[*first, *others]]


def probabilities_table(dataset: xr.Dataset) -> pd.DataFrame:
    """Return a row a method, swept value, step and arm: the policies on their way."""
    log_probs = dataset["log_probs"]
    if log_probs.size > MOST_ROWS:
        log_probs = log_probs.isel(step=[0, -1] if log_probs.sizes["step"] > 1 else [0])
    probs = log_probs.copy(data=np.exp(log_probs.values)).rename("probability")
    return probs.to_dataframe().reset_index()
