"""A bandit of the user's own: train by each method from a reference and follow it."""

from bandits.simulation.inputs import UNIFORM, join, to_distribution
from bandits.simulation.panel import describe, panel
from bandits.simulation.picture import plot, rank, shorten, summarise
from bandits.simulation.run import UndeterminedWarning, simulate
from bandits.simulation.settings import OPTIMIZERS, Settings
from bandits.simulation.written import paths, write

__all__ = [
    "OPTIMIZERS",
    "UNIFORM",
    "Settings",
    "UndeterminedWarning",
    "describe",
    "join",
    "panel",
    "paths",
    "plot",
    "rank",
    "shorten",
    "simulate",
    "summarise",
    "to_distribution",
    "write",
]
