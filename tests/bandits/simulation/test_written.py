"""The files of a simulation: they hold what the dataset does."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bandits.simulation import paths, simulate, write, written

pytestmark = pytest.mark.filterwarnings("ignore::bandits.simulation.UndeterminedWarning")


@pytest.fixture(scope="module")
def dataset():
    return simulate(
        {"a": 0.5, "b": 0.3, "c": 0.2}, preferences=[("a", "b", 2), ("b", "a")],
        methods=["dpo", "rlhf"], beta=[0.1, 1.0], steps=5,
    )  # fmt: skip


def test_all_files_appear_and_agree_with_the_dataset(dataset, tmp_path):
    files = paths(tmp_path, with_pairs=True)
    write(dataset, files)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in files)
    with xr.open_dataset(tmp_path / "trajectory.nc", engine="scipy") as stored:
        np.testing.assert_array_equal(stored["log_probs"], dataset["log_probs"])
    arms = pd.read_csv(tmp_path / "arms.csv")
    assert len(arms) == 3 * 2 * 2
    one = arms[(arms.arm == "a") & (arms.loss == "dpo") & (arms.beta == 1.0)].iloc[0]
    final = float(dataset["log_probs"].sel(loss="dpo", beta=1.0, arm="a")[-1])
    assert one.probability == pytest.approx(np.exp(final), rel=1e-6)
    assert one.rise_in_nats == pytest.approx(final - np.log(0.5), abs=1e-6)
    assert one.learned_reward == pytest.approx(float(dataset["learned_reward"][0]))
    ways = pd.read_csv(tmp_path / "probabilities.csv")
    assert len(ways) == dataset["log_probs"].size
    assert ways.groupby(["loss", "beta", "step"]).probability.sum().to_numpy() == pytest.approx(1)


def test_of_very_long_trajectories_the_ends_are_written(dataset, monkeypatch):
    monkeypatch.setattr(written, "MOST_ROWS", 10)
    assert set(written.probabilities_table(dataset).step) == {0, 5}
