"""What holds for every study of the gallery."""

import dataclasses
import json

import jax.numpy as jnp
import matplotlib as mpl
import pytest
import xarray as xr
from matplotlib.figure import Figure

from bandits.studies.base import Experiment
from bandits.studies.intervals import Interval


@dataclasses.dataclass(frozen=True)
class Settings:
    size: int = 100
    floors: tuple[float, float] = (0.5, 1.0)


def fake(plot=lambda dataset: Figure()):
    return Experiment(
        name="fake",
        source="nowhere",
        question="is it?",
        full=Settings(),
        quick=Settings(size=2),
        run=lambda settings: xr.Dataset({"size": settings.size}, attrs={"kept": 1}),
        plot=plot,
        judge=lambda dataset: [],
    )


@pytest.mark.parametrize(("quick", "size"), [(True, 2), (False, 100)])
def test_the_settings_of_the_scale_travel_with_the_results(quick, size):
    dataset = fake().measure(quick)
    assert int(dataset["size"]) == size
    assert json.loads(dataset.settings) == {"size": size, "floors": [0.5, 1.0]}
    assert (dataset.study, dataset.source, dataset.kept) == ("fake", "nowhere", 1)


def test_drawing_leaves_matplotlib_as_it_was():
    def plot(dataset):
        assert mpl.rcParams["axes.spines.top"] is False
        return Figure()

    before = dict(mpl.rcParams)
    fake(plot).draw(xr.Dataset())
    assert dict(mpl.rcParams) == before


def test_a_claim_is_the_studies_and_can_be_written_as_json():
    for holds in (jnp.array(3.0) > 2, xr.DataArray([1.0]).values.all(), False):
        claim = fake().claim("it is", Interval(1.0, 0.5, 1.5), holds, note="so", asserted=False)
        assert json.loads(json.dumps(dataclasses.asdict(claim))) == {
            "study": "fake",
            "source": "nowhere",
            "statement": "it is",
            "effect": 1.0,
            "low": 0.5,
            "high": 1.5,
            "holds": bool(holds),
            "asserted": False,
            "note": "so",
            "table": None,
        }
