"""What every figure of a study is held to wherever a test draws it."""

import pytest

from bandits import plotting
from bandits.studies.base import Experiment
from bandits.studies.study import Study


@pytest.fixture(autouse=True)
def nothing_outside(monkeypatch):
    """No figure that a test draws has text or lines beyond its edges."""

    def checked(draw):
        def draw_and_check(self, dataset):
            figure = draw(self, dataset)
            if figure.axes:
                assert max(plotting.overflow(figure)) <= 0, f"{self.name} passes its edges"
            return figure

        return draw_and_check

    monkeypatch.setattr(Experiment, "draw", checked(Experiment.draw))
    monkeypatch.setattr(Study, "draw", classmethod(checked(Study.draw.__func__)))
