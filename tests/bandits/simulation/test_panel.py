"""The training panel of a simulation, and sentences that are right in every combination."""

import numpy as np
import pytest

from bandits import plotting
from bandits.simulation.panel import TITLES, describe, panel
from theory.checks import InvalidInput

LABELS = list("abcdef")


def final(dataset, loss="dpo"):
    probs = np.exp(dataset["log_probs"].sel(loss=loss).values[-1])
    return dict(zip(dataset["arm"].values, probs, strict=True))


def ratios(dataset, loss="dpo"):
    log_p = dataset["log_probs"].sel(loss=loss).values[-1]
    changes = log_p - dataset["reference_log_probs"].values
    return dict(zip(dataset["arm"].values, changes, strict=True))


def test_the_panel_has_a_line_a_method_and_value_of_what_trainers_log(make_dataset):
    dataset = make_dataset(
        [0.1, 0.5, 0.4], [(0, 1, 1)], ("dpo", "ipo"), sweep=("beta", [0.1, 1.0]), rate=0.1
    )
    figure = panel(dataset)
    assert [axes.get_title() for axes in figure.axes] == list(TITLES.values())
    for axes, name in zip(figure.axes, TITLES, strict=True):
        runs = [line for line in axes.lines if len(line.get_xdata()) == dataset.sizes["step"]]
        assert len(runs) == 3
        np.testing.assert_allclose(
            runs[1].get_ydata(), dataset[name].sel(loss="dpo", beta=1.0), err_msg=name
        )
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["DPO β = 0.1", "DPO β = 1", "IPO"]
    assert max(plotting.overflow(figure)) <= 0


def test_a_method_without_a_loss_has_no_line_of_it(make_dataset):
    dataset = make_dataset([0.1, 0.5, 0.4], [(0, 1, 1)], ("dpo", "ipo"), rate=0.1)
    dataset["training_loss"][1] = np.nan
    loss, chosen, *_ = panel(dataset).axes
    assert [line.get_xdata().size for line in loss.lines] == [7, 0]
    assert [line.get_xdata().size for line in chosen.lines[:2]] == [7, 7]


def test_without_preferences_there_is_no_panel_and_no_sentence(make_dataset):
    dataset = make_dataset([0.1, 0.9], [(0, 1, 1)], with_pairs=False)
    with pytest.raises(InvalidInput, match="no preferences were given"):
        panel(dataset)
    assert describe(dataset) == []


def test_displacement_names_where_the_mass_went_and_the_peak_of_theory(make_dataset):
    reference = [0.001, 0.499, 0.2, 0.15, 0.1, 0.05]
    dataset = make_dataset(reference, [(0, 1, 1)], labels=LABELS, rate=0.5, steps=(0, 10, 30))
    (sentence,) = describe(dataset)
    moved, end = ratios(dataset), final(dataset)
    outside = sum(end[name] for name in "cdef")
    peak = 0.5 / (0.5 + 2 * np.sqrt(0.001 * 0.499))
    assert f"chosen rose by {moved['a']:.1f} nats, rejected fell by {-moved['b']:.2g}" in sentence
    assert f"the mass went to responses in no pair: c, d, e (0.50 to {outside:.2f}" in sentence
    assert f"each by {moved['c']:.2g} nats" in sentence
    assert f"a single pair sends at most {peak:.2f} there, at a margin of 6.2 nats" in sentence
    assert sentence.endswith("which is not reached.")


def test_past_the_peak_the_winner_has_the_mass(make_dataset):
    reference = [0.01, 0.4, 0.2, 0.2, 0.1, 0.09]
    dataset = make_dataset(reference, [(0, 1, 1)], labels=LABELS, rate=2.0, steps=(0, 10, 1000))
    (sentence,) = describe(dataset)
    assert f"(0.01 to {final(dataset)['a']:.2f})" in sentence
    assert "the mass went to a" in sentence or "most of it went to a" in sentence
    assert sentence.endswith("which is passed.")


def test_a_likely_winner_takes_the_mass_of_responses_in_no_pair(make_dataset):
    dataset = make_dataset([0.4, 0.1, 0.2, 0.1, 0.1, 0.1], [(0, 1, 1)], labels=LABELS)
    (sentence,) = describe(dataset)
    assert "the mass came from responses in no pair (0.50 to " in sentence
    assert f"most of it went to a (0.40 to {final(dataset)['a']:.2f})" in sentence
    assert sentence.endswith("the winner of a single pair cannot fall in a table.")


def test_a_pair_labelled_both_ways_is_no_single_pair(make_dataset):
    dataset = make_dataset([0.4, 0.1, 0.2, 0.1, 0.1, 0.1], [(0, 1, 9), (1, 0, 1)], labels=LABELS)
    (sentence,) = describe(dataset)
    assert "single pair" not in sentence
    moved = ratios(dataset)
    chosen = 0.9 * moved["a"] + 0.1 * moved["b"]
    assert f"chosen {'rose' if chosen > 0 else 'fell'} by {abs(chosen):.2g} nats" in sentence


def test_in_several_pairs_both_can_fall_and_the_mass_go_to_a_winner(make_dataset):
    pairs = [(0, 2, 9), (3, 0, 10), (1, 4, 1), (5, 1, 2)]
    dataset = make_dataset(
        [0.3, 0.3, 0.01, 0.01, 0.3, 0.08], pairs, labels=LABELS, beta=0.1, steps=(0, 100, 3000)
    )
    (sentence,) = describe(dataset)
    weights = np.array([9, 10, 1, 2]) / 22
    moved = ratios(dataset)
    chosen, rejected = weights @ [moved[x] for x in "adbf"], weights @ [moved[x] for x in "caeb"]
    assert chosen < 0
    assert f"chosen fell by {-chosen:.1f} nats and rejected by {-rejected:.1f} while" in sentence
    assert f"the mass went to d, in a pair (0.01 to {final(dataset)['d']:.2f})." in sentence


def test_both_rise_where_the_mass_comes_from_responses_in_no_pair(make_dataset):
    pairs = [(0, 1, 1), (1, 2, 1)]  # Pref-FT raises a and b; b is also rejected
    dataset = make_dataset(
        [0.05, 0.05, 0.0001, 0.4, 0.3, 0.2], pairs, ("preference_likelihood",), labels=LABELS,
        rate=0.1, steps=(0, 10),
    )  # fmt: skip
    moved = ratios(dataset, "preference_likelihood")
    assert moved["b"] + moved["c"] > 0
    (sentence,) = describe(dataset)
    both = (moved["a"] + moved["b"]) / 2, (moved["b"] + moved["c"]) / 2
    assert f"chosen rose by {both[0]:.2g} nats and rejected by {both[1]:.2g} while" in sentence
    assert "the mass came from responses in no pair" in sentence


def test_a_winner_that_falls_and_a_loser_that_rises_are_said_so(make_dataset):
    dataset = make_dataset([0.4, 0.1, 0.3, 0.2], [(0, 1, 1)])
    dataset["log_probs"][0, -1] = np.log([0.1, 0.4, 0.3, 0.2])
    for name, value in (("chosen", np.log(0.25)), ("rejected", np.log(4))):
        dataset[f"rewards_{name}"][0, -1] = 0.5 * value
    dataset["reward_margin"][0, -1] = -np.log(4)
    (sentence,) = describe(dataset)
    assert sentence == (
        "DPO: chosen fell by 1.4 nats, rejected rose by 1.4 and the margin shrank by 2.8: the "
        "mass went to 1, in a pair (0.10 to 0.40); responses in no pair hold 0.50 to 0.50."
    )


def test_mass_that_many_responses_share_is_not_said_to_have_gone_to_one(make_dataset):
    dataset = make_dataset([0.2, 0.2, 0.2, 0.2, 0.2], [(0, 1, 1), (2, 3, 1)])
    dataset["log_probs"][0, -1] = np.log([0.35, 0.01, 0.36, 0.01, 0.27])
    for name, value in (("chosen", np.log(0.355 / 0.2)), ("rejected", np.log(0.01 / 0.2))):
        dataset[f"rewards_{name}"][0, -1] = 0.5 * value
    (sentence,) = describe(dataset)
    assert "the mass went to 2 responses in pairs, first 2, 0 (0.40 to 0.71)" in sentence


def test_what_does_not_move_and_what_diverged_is_said(make_dataset):
    still = make_dataset([0.4, 0.1, 0.3, 0.2], [(0, 1, 1), (1, 0, 1)])
    assert describe(still) == ["DPO: neither chosen nor rejected moved."]
    wild = make_dataset([0.4, 0.1, 0.5], [(0, 1, 1)], ("dpo", "ipo"), rate=0.1)
    wild["diverged"] = ("loss", [True, True])
    wild["training_loss"][0, -1] = 4.5
    wild["log_probs"][1, 3:] = np.nan
    risen, lost = describe(wild)
    assert "its loss rose from 0.693 to 4.5, so where it ended is no result" in risen
    assert "IPO (diverged): became NaN, so where it ended" in lost


def test_without_a_known_scale_changes_are_in_reward(make_dataset):
    dataset = make_dataset([0.4, 0.1, 0.5], [(0, 1, 1)], ("dpo", "ipo"), rate=0.1)
    dataset = dataset.drop_vars("reward_scale")
    dpo, ipo = describe(dataset)
    assert f"rose by {ratios(dataset)[0]:.2g} nats" in dpo  # β is in the attributes
    assert f"rose by {float(dataset['rewards_chosen'][1, -1]):.2g} in reward" in ipo


def test_arms_of_many_prompts_are_means_over_prompts(make_dataset):
    dataset = make_dataset([0.4, 0.1, 0.5], [(0, 1, 1)])
    twice = dataset.isel(arm=[0, 1, 2, 0, 1, 2]).assign_coords(arm=LABELS)
    end = final(dataset)
    values = list(end.values())
    (sentence,) = describe(twice)
    assert f"responses in no pair (0.50 to {values[2]:.2f})" in sentence
