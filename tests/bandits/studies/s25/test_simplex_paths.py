"""Paths on three responses: ends by hand, ways by plain gradient descent, claims that can fail."""

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


def test_hypo_and_ipo_end_where_their_own_losses_do(measured):
    """HyPO between the optimum and the reference; IPO at margins of order 10, so far beyond."""
    last = measured["probability"].isel(step=-1)
    for start in range(2):
        hypo, ipo = (last.sel(loss=name, start=start).values for name in ("hypo", "ipo"))
        np.testing.assert_allclose(ipo, descend("ipo", REFERENCES[start])[-1], atol=5e-3)
        np.testing.assert_allclose(hypo, descend("hypo", REFERENCES[start])[-1], atol=5e-3)
        assert variation(hypo, OPTIMA[start]) > 0.05


# Ways


def gradient(name, p, reference):
    """Of the expected loss in the logits; offline pairs are the reference's."""
    optimum = softmax(np.log(reference) + REWARD / BETA)
    kept = np.log(p / reference)

    def of_score(weights):
        return p * (weights - p @ weights)  # Σ p w ∇log π

    def of_pairs(law, slope):
        pairs = 2 * np.outer(law, law) * WINS * (1 - np.eye(3))
        pulled = pairs * slope(kept[:, None] - kept)
        return pulled.sum(axis=1) - pulled.sum(axis=0)

    def dpo(h):
        return -BETA * expit(-BETA * h)

    return {
        "forward_kl": lambda: p - optimum,
        "reverse_kl": lambda: of_score(np.log(p / optimum)),
        "reinforce": lambda: of_score(np.log(p / optimum)),
        "rlhf": lambda: of_score(np.log(p / optimum)),
        "dpo": lambda: of_pairs(reference, dpo),
        "online_dpo": lambda: of_pairs(p, dpo),
        "ipo": lambda: of_pairs(reference, lambda h: 2 * (h - 10)),
        "hypo": lambda: of_pairs(reference, dpo) + 0.1 * of_score(kept),
        "reward_weighted": lambda: -of_score(np.exp(REWARD / BETA)),
    }[name]()


def descend(name, reference, steps=20_000):
    """Plain gradient descent in logits, with steps short enough to be a flow."""
    rate = {"ipo": 0.02}.get(name, 0.2)
    logits, path = np.log(reference), [reference]
    for _ in range(steps):
        logits = logits - rate * gradient(name, softmax(logits), reference)
        path.append(softmax(logits))
        if np.abs(path[-1] - path[-2]).max() < 1e-9:
            break
    return np.array(path)


def farthest_from(path, line):
    """Largest distance of the points of a path from another, straight between its points."""
    line = np.asarray(line, np.float64)
    between = np.linspace(0, 1, 10, endpoint=False)[:, None, None]
    dense = (line[:-1] + between * np.diff(line, axis=0)).reshape(-1, 3)
    dense = np.concatenate([dense, line[-1:]])
    return max(variation(dense, point).min() for point in np.asarray(path))


@pytest.mark.parametrize(
    "name", ["forward_kl", "reverse_kl", "reinforce", "rlhf", "dpo", "online_dpo", "ipo", "hypo"]
)
def test_the_way_is_that_of_plain_gradient_descent(measured, name):
    for start in range(2):
        line = descend(name, REFERENCES[start])
        path = measured["probability"].sel(loss=name, start=start)
        # Steps of one length swing about the end before they shrink.
        assert farthest_from(path, line) < 0.008
        assert farthest_from(line[:: max(len(line) // 100, 1)], path) < 0.005  # the whole of it


def test_the_ways_to_the_same_end_are_not_the_same(measured):
    paths = measured["probability"].sel(start=0)
    for one, other in (("forward_kl", "reverse_kl"), ("dpo", "online_dpo"), ("dpo", "rlhf")):
        assert farthest_from(paths.sel(loss=one), paths.sel(loss=other)) > 0.01


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
