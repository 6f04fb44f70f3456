"""Quick runs that all tests share, and what every figure is held to wherever a test draws it."""

import fcntl
import os
import pickle

import pytest

from bandits import plotting
from bandits.studies import STUDIES
from bandits.studies.study import Study


@pytest.fixture(scope="session")
def measured(tmp_path_factory):
    """Return a copy of a study's quick run, which is measured once for all tests and processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def measure(name):
        path = folder / f"{name}.pickle"
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                path.write_bytes(pickle.dumps(STUDIES[name].measure(quick=True)))
        return pickle.loads(path.read_bytes())

    return measure


@pytest.fixture
def failing():
    """Return the places of the claims of a study that do not hold."""
    return lambda study, dataset: [i for i, c in enumerate(study.judge(dataset)) if not c.holds]


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

    monkeypatch.setattr(Study, "draw", classmethod(checked(Study.draw.__func__)))
