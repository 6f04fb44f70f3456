"""The panel's words for every combination of signs, and its drawing."""

import numpy as np
import pytest

from bandits import plotting
from bandits.training_panel import Curve, draw_panel, say_changes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((-2.6, -3.3, 0.7),
         "chosen fell by 2.6 nats and rejected by 3.3 while the margin grew by 0.7"),
        ((1.25, 0.5, 0.75),
         "chosen rose by 1.2 nats and rejected by 0.5 while the margin grew by 0.75"),
        ((0.5, 1.5, -1.0),
         "chosen rose by 0.5 nats and rejected by 1.5 while the margin shrank by 1.0"),
        ((2.0, -3.0, 5.0),
         "chosen rose by 2.0 nats, rejected fell by 3.0 and the margin grew by 5.0"),
        ((-2.0, 3.0, -5.0),
         "chosen fell by 2.0 nats, rejected rose by 3.0 and the margin shrank by 5.0"),
        ((0.001, -3.0, 3.0),
         "chosen stayed, rejected fell by 3.0 nats and the margin grew by 3.0"),
        ((1.0, 0.0, 1.0), "chosen rose by 1.0 nats, rejected stayed and the margin grew by 1.0"),
        ((-1.0, -1.0, 0.0),
         "chosen fell by 1.0 nats and rejected by 1.0 while the margin stayed"),
        ((0.001, -0.004, 0.005), "neither chosen nor rejected moved"),
    ],
)  # fmt: skip
def test_the_words_follow_the_signs(changes, said):
    assert say_changes(*changes, " nats", 0.005) == said


def curve(values, label="run", **more):
    return Curve(np.arange(len(values)), np.array(values, float), label, "#000000", **more)


def test_gaps_are_left_out_and_rewards_share_a_scale():
    figure = draw_panel(
        {
            "rewards/chosen": [curve([0, np.nan, -1, -2])],
            "rewards/rejected": [curve([0, -5, -6, -9])],
            "rewards/accuracies": [curve([0.5, 0.7, 0.6, 0.9])],
        },
        log_steps=False,
    )
    chosen, rejected, accuracy, *spare = figure.axes
    np.testing.assert_array_equal(chosen.lines[0].get_xdata(), [0, 2, 3])
    assert chosen.get_ylim() == rejected.get_ylim()
    assert chosen.get_ylim()[0] < -9
    assert accuracy.get_ylim() == (0, 1.03)
    assert not any(axes.axison for axes in spare)
    assert "β log π/π_ref" in figure.get_supxlabel()
    assert max(plotting.overflow(figure)) <= 0


def test_step_zero_is_drawn_on_a_log_scale_and_divergence_does_not_set_the_scale():
    wild = curve([0, 1e9, 1e18], "wild", style=":", counts=False)
    rewards = {"rewards/chosen": [curve([0, 1, 2]), wild], "rewards/rejected": [curve([0, 0, 0])]}
    figure = draw_panel(rewards, log_steps=True)
    axes = figure.axes[0]
    assert axes.transData.transform((0, 0))[0] < axes.transData.transform((1, 0))[0]
    assert axes.get_ylim()[1] < 3
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["run", "wild"]
    assert legend.get_lines()[1].get_linestyle() == ":"


def test_losses_of_far_scales_share_a_log_axis():
    none = {title: [curve([0, 0])] for title in ("rewards/chosen", "rewards/rejected")}
    far = draw_panel({"loss": [curve([0.69, 0.1]), curve([100, 4])], **none}, log_steps=False)
    near = draw_panel({"loss": [curve([0.69, 0.1]), curve([1, 0.4])], **none}, log_steps=False)
    negative = draw_panel({"loss": [curve([-0.7, -1]), curve([100, 4])], **none}, log_steps=False)
    scales = [figure.axes[0].get_yscale() for figure in (far, near, negative)]
    assert scales == ["log", "linear", "symlog"]
