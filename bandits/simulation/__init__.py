"""A bandit of the user's own: train by each method from a reference and follow it."""

from bandits.simulation.inputs import UNIFORM, join, to_distribution
from bandits.simulation.panel import describe, panel
from bandits.simulation.picture import plot, rank, shorten, summarise
from bandits.simulation.run import OPTIMIZERS, RIDGE, UndeterminedWarning, simulate
from bandits.simulation.written import paths, write

__all__ = [
    "OPTIMIZERS",
    "RIDGE",
    "UNIFORM",
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
