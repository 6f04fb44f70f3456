"""The log-probabilities of pairs: the labels fit below any number of rows."""

import numpy as np
import pytest
import xarray as xr

from bandits import plotting
from bandits.studies.t24.preference_log_probs import EXPERIMENT, NAMES


@pytest.mark.parametrize("counts", [[20], [5, 100], [1, 5, 100]])
def test_the_labels_below_any_number_of_rows_are_whole(counts):
    dims = ("loss", "contexts", "seed", "step")
    zeros = np.zeros((len(NAMES), len(counts), 3, 4))
    coords = {"loss": list(NAMES), "contexts": counts, "seed": [0, 1, 2], "step": [0, 1, 2, 3]}
    variables = dict.fromkeys(("winner", "loser", "outside"), (dims, zeros))
    figure = EXPERIMENT.draw(xr.Dataset(variables, coords))
    assert [axes.get_xlabel() for axes in figure.axes[-3:]] == ["gradient steps"] * 3
    assert max(plotting.overflow(figure)) < 0
