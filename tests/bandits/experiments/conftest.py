"""What every figure of an experiment is held to wherever a test draws it."""

import pytest

from bandits import plotting
from bandits.experiments.base import Experiment


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch):
    """No figure that a test draws has text or lines beyond its edges."""
    draw = Experiment.draw

    def draw_and_check(self, dataset):
        figure = draw(self, dataset)
        if figure.axes:
            assert max(plotting.overflow(figure)) <= 0, f"{self.name} passes its edges"
        return figure

    monkeypatch.setattr(Experiment, "draw", draw_and_check)
