"""A bandit of the user's own: train by each method from a reference and follow it."""

from bandits.simulate.inputs import UNIFORM, join, to_distribution
from bandits.simulate.panel import describe, panel
from bandits.simulate.picture import plot, rank, shorten, summarise
from bandits.simulate.run import OPTIMIZERS, RIDGE, UndeterminedWarning, simulate
from bandits.simulate.written import paths, write

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
