import struct
import sys

import ipywidgets
import pytest

from bandits import plotting
from bandits.classroom import STATIC, Picture, explore
from theory.checks import InvalidInput


def make_draw():
    calls = []

    def draw(peak=70, rate=1.0, loss="reverse_kl"):
        calls.append((peak, rate, loss))
        figure = plotting.new_figure(4, 2)
        figure.subplots().plot([0, peak * rate])
        return figure

    return draw, calls


def size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_a_slider_draws_the_picture_anew_with_every_controls_value(monkeypatch):
    monkeypatch.delenv(STATIC, raising=False)
    draw, calls = make_draw()
    shown = explore(draw, peak=range(0, 100, 10), loss=["forward_kl", "reverse_kl"])
    peak, loss, image = shown.children
    assert isinstance(peak, ipywidgets.SelectionSlider)
    assert isinstance(loss, ipywidgets.Dropdown)
    assert calls == [(70, 1.0, "reverse_kl")]
    before = image.value
    assert size(before) == (320, 160)
    peak.value = 20
    loss.value = "forward_kl"
    assert calls[1:] == [(20, 1.0, "reverse_kl"), (20, 1.0, "forward_kl")]
    assert image.value != before


def test_names_of_methods_are_shown_as_in_every_figure(monkeypatch):
    monkeypatch.delenv(STATIC, raising=False)
    draw, _ = make_draw()
    menu = explore(draw, loss=["forward_kl", "reverse_kl"]).children[0]
    assert [label for label, _ in menu.options] == ["forward KL", "reverse KL"]


def test_a_default_is_found_among_values_that_are_rounded(monkeypatch):
    monkeypatch.delenv(STATIC, raising=False)
    draw, calls = make_draw()
    assert explore(draw, rate=[0.5, 1.0 + 1e-12]).children[0].index == 1
    assert calls[0][1] == 1.0 + 1e-12


def test_without_widgets_it_is_a_picture_that_says_what_it_shows(monkeypatch):
    draw, calls = make_draw()
    monkeypatch.setenv(STATIC, "1")
    shown = explore(draw, peak=[60, 70], loss=["reverse_kl"])
    assert isinstance(shown, Picture)
    assert size(shown._repr_png_()) == (320, 160)
    assert repr(shown).startswith("peak = 70, loss = reverse KL (")
    assert calls == [(70, 1.0, "reverse_kl")]
    monkeypatch.delenv(STATIC)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    assert isinstance(explore(draw, peak=[70]), Picture)


def test_without_controls_it_is_a_picture_too(monkeypatch):
    monkeypatch.delenv(STATIC, raising=False)
    assert isinstance(explore(make_draw()[0]), Picture)


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"paek": [70]}, "unknown control 'paek'; did you mean 'peak'?"),
        ({"peak": []}, "control peak has no values"),
        ({"peak": [10, 20]}, "control peak starts at 70, which is not among its values: 10, 20"),
        ({"loss": ["dpo"]}, "control loss starts at 'reverse_kl', which is not among"),
    ],
)
def test_a_control_that_cannot_be_is_refused_in_a_sentence(controls, message):
    with pytest.raises(InvalidInput, match=message.replace("?", r"\?")):
        explore(make_draw()[0], **controls)
