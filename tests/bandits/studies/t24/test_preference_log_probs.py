"""The log-probabilities of pairs: what is followed, and a figure of any number of rows.

That its claims can fail is held by `test_bandit_gallery`.
"""

import numpy as np
import pytest
import xarray as xr

from bandits import plotting
from bandits.studies.t24.preference_log_probs import NAMES, PreferenceLogProbs

QUANTITIES = ["winner", "loser", "outside"]


@pytest.fixture
def followed(measured):
    return measured("preference_log_probs")


def test_a_run_is_labelled_and_widens_the_margin(followed):
    assert dict(followed.sizes) == {"loss": 3, "contexts": 1, "seed": 3, "step": 7}
    for name in QUANTITIES:
        assert followed[name].dims == ("loss", "contexts", "seed", "step")
        assert followed[name].attrs["units"]
    assert followed["loss"].values.tolist() == list(NAMES)
    assert followed["step"].values.tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert ((followed["outside"] >= 0) & (followed["outside"] <= 1)).all()
    margin = (followed["winner"] - followed["loser"]).isel(step=-1)
    assert (margin.sel(loss=["dpo", "ipo"]) > 0).all()


def test_all_methods_of_a_seed_start_from_the_same_pairs_and_at_0(followed):
    start = followed.isel(step=0)
    for name in QUANTITIES:
        np.testing.assert_allclose(start[name], start[name].isel(loss=[0] * 3), rtol=1e-5)
    np.testing.assert_allclose(start[["winner", "loser"]].to_array(), 0, atol=1e-5)


@pytest.mark.parametrize("counts", [[20], [5, 100], [1, 5, 100]])
def test_the_labels_below_any_number_of_rows_are_whole(counts):
    dims = ("loss", "contexts", "seed", "step")
    zeros = np.zeros((len(NAMES), len(counts), 3, 4))
    coords = {"loss": list(NAMES), "contexts": counts, "seed": [0, 1, 2], "step": [0, 1, 2, 3]}
    figure = PreferenceLogProbs.draw(xr.Dataset(dict.fromkeys(QUANTITIES, (dims, zeros)), coords))
    assert [axes.get_xlabel() for axes in figure.axes[-3:]] == ["gradient steps"] * 3
    assert max(plotting.overflow(figure)) < 0
