"""The picture and the tables: every name can be read, and what diverged is no result."""

import itertools

import numpy as np
import pytest

from bandits import plotting
from bandits.simulation.picture import MOST_RANKED, plot, rank, summarise

PAIRS = [(0, 1, 1), (2, 3, 2)]
NAMES = {
    "long": [letter * 26 for letter in "abcdefghij"],
    "models": [f"vendor-{i}/model-{i}-{7 + i}b-instruct" for i in range(30)],
    "sixty": [f"response number {i}" for i in range(60)],
    "thousands": [f"answer {i} " + "x" * 2000 + f" {i}" for i in range(1000)],
    "odd": ["$5-$10", "two\nlines", r"$\frac$", "a_b^c", "100%"],
}


def reference_of(count):
    return np.random.default_rng(count).dirichlet(np.ones(count))


def drawn_names(figure):
    """The labels of the arms' axis, and whether they stand on the left."""
    top = figure.axes[0]
    upright = [label for label in top.get_yticklabels() if label.get_text()]
    on_the_left = not top.get_ylabel()
    return (upright if on_the_left else top.get_xticklabels()), on_the_left


@pytest.mark.parametrize("case", NAMES)
def test_names_do_not_overlap_and_nothing_passes_the_edges(make_dataset, case):
    names = NAMES[case]
    figure = plot(make_dataset(reference_of(len(names)), PAIRS, labels=names, rate=0.3))
    figure.dpi = 125  # as it is saved
    assert max(plotting.overflow(figure)) <= 0
    labels, ranked = drawn_names(figure)
    assert ranked == (case in ("models", "sixty", "thousands"))
    assert len(labels) == (MOST_RANKED if ranked else len(names))
    boxes = [label.get_window_extent() for label in labels]
    if ranked:
        tops = sorted((box.y0, box.y1) for box in boxes)
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(tops))
    elif labels[0].get_rotation() == 45:
        # The lines of slanted names are apart by the distance of their ends over √2.
        ends = [box.x1 for box in boxes]
        assert min(np.diff(ends)) / np.sqrt(2) > labels[0].get_fontsize() * figure.dpi / 72
        titles = [axes.title.get_window_extent() for axes in figure.axes[1:]]
        assert min(box.y0 for box in boxes) > max(title.y1 for title in titles)
    else:
        assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_unnamed_arms_stay_a_line_in_their_order(make_dataset):
    figure = plot(make_dataset(reference_of(60), PAIRS, rate=0.3))
    (curve,) = [line for line in figure.axes[0].lines if line.get_label() == "DPO"]
    assert len(curve.get_xdata()) == 60


def test_the_ranked_arms_are_those_that_rise_and_fall_most(make_dataset):
    dataset = make_dataset(reference_of(60), PAIRS, labels=NAMES["sixty"], rate=0.3)
    change = np.exp(dataset["log_probs"].sel(loss="dpo").values[-1]) - np.exp(
        dataset["reference_log_probs"].values
    )
    ends = np.argsort(change)[[*range(MOST_RANKED // 2), *range(-MOST_RANKED // 2, 0)]]
    expected = {NAMES["sixty"][i] for i in ends}
    labels, _ = drawn_names(plot(dataset))
    assert {label.get_text() for label in labels} == expected


def test_swept_values_are_lines_and_what_diverged_has_no_end(make_dataset):
    dataset = make_dataset([0.2, 0.3, 0.5], [(0, 1, 1)], ("dpo", "ipo"), sweep=("beta", [0.1, 1.0]))
    dataset["diverged"] = (("loss", "beta"), [[True, False], [False, False]])
    figure = plot(dataset)
    top, *below = figure.axes
    legend = [text.get_text() for text in top.get_legend().get_texts()]
    assert legend == ["target", "reference", "DPO β = 0.1 (diverged)", "DPO β = 1", "IPO"]
    assert [len(axes.lines) for axes in below] == [3, 3, 3]
    assert [line.get_linestyle() for line in below[0].lines] == [":", "-", "-"]
    ends = {line.get_label(): line.get_ydata() for line in top.lines}
    assert np.isnan(ends["DPO β = 0.1 (diverged)"]).all()
    final = np.exp(dataset["log_probs"].sel(loss="dpo", beta=1.0).values[-1])
    np.testing.assert_allclose(ends["DPO β = 1"], final)


def test_results_set_the_scale_and_not_what_diverged(make_dataset):
    dataset = make_dataset([0.2, 0.3, 0.5], [(0, 1, 1)], ("dpo", "ipo"), rate=0.1)
    dataset["forward_kl"][1] = np.geomspace(1, 1e12, dataset.sizes["step"])
    dataset["diverged"] = ("loss", [False, True])
    top = plot(dataset).axes[1].get_ylim()[1]
    assert float(dataset["forward_kl"][0].max()) < top < 10


def test_the_summary_has_a_row_a_value_and_marks_what_diverged(make_dataset):
    dataset = make_dataset([0.2, 0.3, 0.5], [(0, 1, 1)], ("dpo", "ipo"), sweep=("beta", [0.1, 1.0]))
    rows = summarise(dataset)
    assert [row[:2] for row in rows] == [
        ("method", "beta"), ("dpo", "0.1"), ("dpo", "1"), ("ipo", ""),
    ]  # fmt: skip
    assert {len(row) for row in rows} == {6}
    final = float(dataset["forward_kl"].sel(loss="dpo", beta=1.0)[-1])
    assert rows[2][2] == f"{final:.4g}"
    dataset["diverged"] = (("loss", "beta"), [[True, False], [False, False]])
    assert [row[-1] for row in summarise(dataset)] == ["result", "diverged", "ok", "ok"]


def test_the_ranking_says_who_won_and_by_how_much(make_dataset):
    labels = ["a", "b", "c", "d" * 2000]
    dataset = make_dataset([0.1, 0.6, 0.29, 0.01], [(0, 1, 1)], ("dpo", "ipo"), labels=labels)
    header, *rows = rank(dataset, top=3)
    assert header == (
        "arm", "reference", "DPO", "DPO: rise in nats", "IPO", "IPO: rise in nats",
    )  # fmt: skip
    final = dataset["log_probs"].isel(step=-1).values
    start = dataset["reference_log_probs"].values
    change = np.exp(final) - np.exp(start)
    risen, fallen = change.max(axis=0), change.min(axis=0)
    taken = np.argsort(-risen)[:2]
    taken = np.array([*taken, next(i for i in np.argsort(fallen) if i not in taken)])
    order = taken[np.argsort(-np.exp(final).mean(axis=0)[taken])]
    assert [row[0] for row in rows] == [labels[i] for i in order]
    for row, i in zip(rows, order, strict=True):
        numbers = (
            np.exp(start[i]),
            *np.ravel(np.transpose([np.exp(final[:, i]), final[:, i] - start[i]])),
        )
        np.testing.assert_allclose([float(cell) for cell in row[1:]], numbers, rtol=6e-3)
    dataset["learned_reward"] = ("arm", [1.0, -1.0, 0.0, 0.5])
    header, first, *_ = rank(dataset)
    assert header[2] == "learned reward"
    assert float(first[2]) == dataset["learned_reward"].values[labels.index(first[0])]
    assert len(rank(dataset)) == 5  # the full label is kept
    assert "d" * 2000 in [row[0] for row in rank(dataset)]


def test_an_arm_that_the_reference_excludes_has_no_rise(make_dataset):
    dataset = make_dataset([0.2, 0.3, 0.5], [(0, 1, 1)])
    dataset["reference_log_probs"][2] = -np.inf
    dataset["log_probs"][..., 2] = -np.inf
    row = next(row for row in rank(dataset) if row[0] == "2")
    assert row[-2:] == ("0", "")
