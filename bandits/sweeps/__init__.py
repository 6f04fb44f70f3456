"""Parameter sweeps: a grid of axes, one vmapped program, a labelled dataset."""

from bandits.sweeps.grid import static
from bandits.sweeps.sweep import DivergenceWarning, sweep

__all__ = ["DivergenceWarning", "static", "sweep"]
