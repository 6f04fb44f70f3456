"""Paths on three responses: their ends by hand, and claims that can fail."""

import numpy as np
import pytest
import xarray as xr
from scipy.special import expit, softmax

from bandits.losses import METHODS
from bandits.plotting import METHOD_LABELS
from bandits.studies.s25.simplex_paths import TO_OPTIMUM, SimplexPaths
from theory.checks import InvalidInput

REFERENCES = np.array([[0.08, 0.12, 0.8], [0.1, 0.8, 0.1]])
STUDY = SimplexPaths(references=tuple(map(tuple, REFERENCES)), step=0.025, batch=80)
judge = SimplexPaths.judge
REWARD, BETA = np.array([1, 0.5, 0]), 0.5
OPTIMA = softmax(np.log(REFERENCES) + REWARD / BETA, axis=1)
WINS = expit(REWARD[:, None] - REWARD)


@pytest.fixture(scope="module")
def measured():
    return STUDY.run()


def variation(one, other):
    return 0.5 * np.abs(np.asarray(one) - other).sum(axis=-1)


def test_every_method_has_a_path_of_distributions_from_every_reference(measured):
    paths = measured["probability"]
    assert sorted(paths["loss"].values) == sorted(METHODS)
    assert paths["step"].values.tolist() == list(range(0, 1201, 6))
    np.testing.assert_allclose(paths.sum("response"), 1, rtol=1e-5)
    starts = np.broadcast_to(REFERENCES, (len(METHODS), 2, 3))
    np.testing.assert_allclose(paths.sel(step=0), starts, rtol=1e-5)
    np.testing.assert_allclose(measured["optimum"], OPTIMA, rtol=1e-5)


def test_ten_methods_end_at_the_gibbs_policy_and_every_claim_holds(failing, measured):
    assert len(TO_OPTIMUM) == 10
    ends = measured["probability"].sel(loss=list(TO_OPTIMUM)).isel(step=-1)
    assert (variation(ends, OPTIMA) < 2e-3).all()
    assert (variation(REFERENCES, OPTIMA) > 0.1).all()
    assert failing(SimplexPaths, measured) == []


@pytest.mark.parametrize("name", ["hypo", "ipo"])
def test_hypo_and_ipo_end_where_the_gradients_of_their_own_losses_vanish(measured, name):
    """HyPO between the optimum and the reference; IPO at margins of order 10, so far beyond."""
    ends = measured["probability"].sel(loss=name).isel(step=-1).values
    for p, reference in zip(ends, REFERENCES, strict=True):
        kept = np.log(p / reference)
        margins, pairs = kept[:, None] - kept, 2 * np.outer(reference, reference) * WINS
        if name == "hypo":
            pulled = -BETA * pairs * expit(-BETA * margins)
            penalty = STUDY.kl_coefficient * p * (kept - p @ kept)
        else:
            pulled, penalty = 2 * pairs * (margins - 10), 0
        np.fill_diagonal(pulled, 0)
        gradient = pulled.sum(axis=1) - pulled.sum(axis=0) + penalty
        assert np.linalg.norm(gradient) < 1e-4 * np.abs(pulled).sum()
        assert variation(p, softmax(np.log(reference) + REWARD / BETA)) > 0.05


def test_the_references_own_responses_teach_nothing(measured):
    path = measured["probability"].sel(loss="supervised")
    # A normalised gradient of rounding errors may shake it on the way.
    assert float(abs(path - path.isel(step=0)).max()) < 0.02
    assert (variation(path.isel(step=-1), REFERENCES) < 1e-4).all()


# Claims


def made():
    """Paths of two records: straight to where the finding has each method end."""
    names = list(METHODS)
    ends = np.broadcast_to([0.9, 0.05, 0.05], (len(names), 2, 3)).copy()
    for i, name in enumerate(names):
        if name in TO_OPTIMUM:
            ends[i] = OPTIMA
        elif name == "supervised":
            ends[i] = REFERENCES
        elif name in ("best_of_n", "reward_weighted", "advantage_weighted"):
            ends[i] = [0.99, 0.005, 0.005]
    starts = np.broadcast_to(REFERENCES, ends.shape)
    return xr.Dataset(
        {
            "probability": (("loss", "start", "step", "response"), np.stack([starts, ends], 2)),
            "optimum": (("start", "response"), OPTIMA),
        },
        {"loss": names, "step": [0, 9], "response": ["best", "middle", "worst"]},
    )


def beside(law, distance):
    """A law at that total variation from another."""
    return law + np.array([distance, -distance, 0])


def test_every_claim_holds_where_the_finding_does():
    claims = judge(made())
    assert [claim.holds for claim in claims] == [True] * 4
    farthest = 0.5 * np.abs(OPTIMA - [0.9, 0.05, 0.05]).sum(axis=1).max()
    nearest = min(farthest, variation(REFERENCES, OPTIMA).max())
    assert [claim.effect for claim in claims] == pytest.approx([0, nearest, 0.99, 0], abs=1e-9)
    assert claims[0].statement.startswith("10 methods")
    assert all(claim.low == claim.effect == claim.high for claim in claims)


@pytest.mark.parametrize(
    ("name", "start", "end", "expected"),
    [
        *((name, 1, beside(OPTIMA[1], 0.011), [0]) for name in TO_OPTIMUM),
        ("hypo", slice(None), beside(OPTIMA, 0.009), [1]),
        ("hypo", 1, OPTIMA[1], []),  # its worst start counts
        ("best_of_n", 1, [0.94, 0.03, 0.03], [2]),
        ("reward_weighted", 0, [0.94, 0.03, 0.03], [2]),
        ("advantage_weighted", 0, [0.94, 0.03, 0.03], [2]),
        ("supervised", 1, beside(REFERENCES[1], 0.011), [3]),
    ],
)
def test_a_method_that_ends_elsewhere_fails_the_claim_about_it(failing, name, start, end, expected):
    dataset = made()
    dataset["probability"].loc[{"loss": name, "step": 9}][{"start": start}] = end
    assert failing(SimplexPaths, dataset) == expected


def test_the_notes_name_the_farthest_and_the_nearest():
    dataset = made()
    dataset["probability"].loc[{"loss": "ppo", "step": 9}] = beside(OPTIMA, 0.002)
    dataset["probability"].loc[{"loss": "slic", "step": 9}] = beside(OPTIMA, 0.02)
    claims = judge(dataset)
    assert claims[0].note == "The farthest is PPO."
    assert claims[1].note == "The nearest is SLiC."


@pytest.mark.parametrize("start", [slice(None), slice(1, 2)], ids=["all", "one"])
def test_paths_that_are_undefined_are_not_judged(start):
    dataset = made()
    dataset["probability"].loc[{"loss": "rlhf", "step": 9}][{"start": start}] = np.nan
    with pytest.raises(InvalidInput, match="probability is NaN"):
        judge(dataset)


def test_the_figure_has_a_triangle_a_method():
    dataset = made()
    figure = SimplexPaths.draw(dataset)
    assert [axes.get_title() for axes in figure.axes] == [METHOD_LABELS[name] for name in METHODS]
    assert {axes.name for axes in figure.axes} == {"ternary"}
    # From each of two starts: the path, its start, its end, the optimum.
    assert {len(axes.lines) for axes in figure.axes} == {8}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "reference", "end", "its KL-regularised optimum",
    ]  # fmt: skip


def test_the_moving_figure_brings_every_policy_to_its_end(measured):
    frames = SimplexPaths.film(measured)
    frames.draw(0)
    frames.figure.canvas.draw()
    heads = [
        line for axes in frames.figure.axes for line in axes.lines if line.get_markersize() == 9
    ]
    starts = np.array([np.ravel(head.get_data()) for head in heads])
    frames.draw(frames.number - 1)
    ends = np.array([np.ravel(head.get_data()) for head in heads])
    moved = np.hypot(*(ends - starts).T)
    assert len(heads) == 8 * measured.sizes["start"]
    assert (moved > 0.01).mean() > 0.9
