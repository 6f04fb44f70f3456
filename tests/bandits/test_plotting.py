"""Panels: how many, where, which are labelled, in which projection; and the lines of methods."""

import matplotlib.image
import mpltern  # noqa: F401  registers the ternary projection
import numpy as np
import pytest

from bandits.losses import METHODS
from bandits.plotting import (
    LONGEST_NAME,
    METHOD_COLORS,
    METHOD_LABELS,
    METHOD_LINES,
    new_figure,
    new_panels,
    overflow,
    save,
    short_names,
)

MARGINS = (0.5, 0.6, 0.2, 0.3)


def draw(panels):
    for i, axes in enumerate(panels):
        axes.plot([0, i + 1], [0, 10 * (i + 1)])


def labelled(axes, side):
    axis = axes.xaxis if side == "labelbottom" else axes.yaxis
    return axis.get_tick_params()[side]


@pytest.mark.parametrize(
    ("count", "columns", "rows"), [(7, 3, 3), (6, 3, 2), (1, 1, 1), (5, 6, 1), (24, 6, 4)]
)
def test_there_are_as_many_panels_as_asked_and_the_spare_ones_are_off(count, columns, rows):
    figure, panels = new_panels(count, 12, 2, MARGINS, columns=columns)
    assert len(panels) == count
    assert len(figure.axes) == rows * columns
    assert figure.axes[:count] == panels
    assert [axes.axison for axes in figure.axes] == [True] * count + [False] * (
        rows * columns - count
    )


@pytest.mark.parametrize(("count", "rows"), [(4, 1), (5, 2)])
def test_sizes_are_in_inches(count, rows):
    figure, panels = new_panels(count, 10, 2.5, MARGINS, columns=4)
    width, height = figure.get_size_inches()
    left, bottom, right, top = MARGINS
    assert (width, height) == pytest.approx((10, 2.5 * rows + bottom + top))
    boxes = np.array([axes.get_position().extents for axes in figure.axes])
    boxes *= [width, height, width, height]
    assert boxes[:, 0].min() == pytest.approx(left)
    assert boxes[:, 1].min() == pytest.approx(bottom)
    assert boxes[:, 2].max() == pytest.approx(width - right)
    assert boxes[:, 3].max() == pytest.approx(height - top)
    sizes = np.array([(b[2] - b[0], b[3] - b[1]) for b in boxes])
    np.testing.assert_allclose(sizes, np.broadcast_to(sizes[0], sizes.shape))
    assert panels[0].get_position().y1 == panels[3].get_position().y1


def test_shared_panels_have_one_scale_and_labels_at_the_outside_only():
    figure, panels = new_panels(7, 12, 2, MARGINS, columns=3)
    draw(panels)
    figure.draw_without_rendering()
    assert {axes.get_xlim() for axes in panels} == {panels[6].get_xlim()}
    assert {axes.get_ylim() for axes in panels} == {panels[6].get_ylim()}
    # Below the last of a column nothing is left but spare ones.
    assert [labelled(axes, "labelbottom") for axes in panels] == [False] * 4 + [True] * 3
    assert [labelled(axes, "labelleft") for axes in panels] == [True, False, False] * 2 + [True]
    drawn = [[t.label1.get_visible() for t in axes.xaxis.get_major_ticks()] for axes in panels]
    assert [all(ticks) for ticks in drawn] == [False] * 4 + [True] * 3


def test_panels_of_their_own_are_all_labelled_on_scales_of_their_own():
    figure, panels = new_panels(4, 12, 2, MARGINS, columns=2, shared=False)
    draw(panels)
    figure.draw_without_rendering()
    assert len({axes.get_xlim() for axes in panels}) == len({a.get_ylim() for a in panels}) == 4
    for side in ("labelbottom", "labelleft"):
        assert all(labelled(axes, side) for axes in panels)


@pytest.mark.parametrize("projection", ["polar", "ternary"])
def test_every_panel_has_the_projection(projection):
    figure, panels = new_panels(5, 9, 2, MARGINS, columns=3, shared=False, projection=projection)
    assert [axes.name for axes in panels] == [projection] * 5
    assert not figure.axes[5].axison
    if projection == "ternary":
        panels[0].plot([0.2, 1], [0.3, 0], [0.5, 0])
    figure.draw_without_rendering()


def test_every_method_has_a_color_a_label_and_a_line_of_its_family():
    for styles in (METHOD_COLORS, METHOD_LABELS, METHOD_LINES):
        assert set(METHODS) <= set(styles)
    family = {"divergence": "-", "likelihood": "-", "contrastive": "--", "policy gradient": "-."}
    for name, method in METHODS.items():
        dotted = name.startswith("online")
        assert METHOD_LINES[name] == (":" if dotted else family[method.family])
    assert {name for name in METHODS if METHOD_LINES[name] == ":"} == {
        "online_dpo", "online_ipo",
    }  # fmt: skip


def test_no_two_methods_look_the_same():
    looks = [(METHOD_COLORS[name].upper(), METHOD_LINES[name]) for name in METHODS]
    assert len(set(looks)) == len(METHODS)
    assert len({METHOD_LABELS[name] for name in METHODS}) == len(METHODS)


def test_a_figure_is_saved_as_palette_and_as_vector_and_twice_the_same(tmp_path):
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=METHOD_COLORS["dpo"], linewidth=20)
    axes.set_title("σ(β h)")
    for turn in ("a", "b"):
        save(figure, tmp_path / f"{turn}.png", tmp_path / f"{turn}.pdf")
    picture = matplotlib.image.imread(tmp_path / "a.png")
    assert picture.shape[:2] == (375, 500)
    middle = np.array([0xE6, 0x9F, 0x00]) / 255
    np.testing.assert_allclose(picture[190, 257, :3], middle, atol=0.02)
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    for kind in ("png", "pdf"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_what_stands_outside_a_figure_is_measured_and_kept(tmp_path):
    figure = new_figure(4, 3)
    axes = figure.add_axes((0.0, 0.2, 1.0, 0.6))
    axes.set(xticks=[], yticks=[])
    assert max(overflow(figure)) <= 0.01
    save(figure, tmp_path / "whole.png")
    figure.text(0.5, -0.1, "below", va="top")  # 0.3 inches below the edge
    left, bottom, right, top = overflow(figure)
    assert bottom > 0.3
    assert max(left, right, top) <= 0.01
    save(figure, tmp_path / "grown.png", tmp_path / "grown.pdf")
    before, after = (
        matplotlib.image.imread(tmp_path / f"{name}.png").shape for name in ("whole", "grown")
    )
    assert after[0] - before[0] == pytest.approx((bottom + 0.05) * 125, abs=2)
    assert after[1] == pytest.approx(before[1], abs=15)
    rows = matplotlib.image.imread(tmp_path / "grown.png")[-40:, :, :3].min(axis=(1, 2))
    assert rows.min() < 0.5  # the text is there
    assert rows[-4:].min() > 0.9  # and whole


def test_long_names_are_shortened_in_the_middle_and_stay_different():
    names = short_names(["short", "a" * 50 + "1", "a" * 50 + "2", "two\nlines\t here", "$x^2$"])
    assert names[0] == "short"
    assert [len(name) for name in names[1:3]] == [LONGEST_NAME] * 2
    assert names[1].startswith("aaaa")
    assert names[1][-1] == "1"
    assert "…" in names[1]
    assert names[3:] == ["two lines here", "$x^2$"]
    same = short_names(["a" * 25 + "x" * 50 + "b" * 20, "a" * 25 + "y" * 50 + "b" * 20, "a"])
    assert same == [f"{same[0][:-4]} [0]", f"{same[0][:-4]} [1]", "a"]
    assert short_names(range(3)) == ["0", "1", "2"]


def test_letters_without_a_font_are_left_out_and_said():
    with pytest.warns(UserWarning, match="letters of 2 of the labels"):
        names = short_names(["plain", "GPT \ue123\ue124 x", "\ue123\ue124", ""])
    # Private letters, which no font has; they are no names, so the label is empty.
    assert names[:2] == ["plain", "GPT  x"]
