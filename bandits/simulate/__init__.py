"""A bandit of the user's own: train by each method from a reference and follow it."""

from bandits.simulate.picture import plot, summarise
from bandits.simulate.problem import to_distribution
from bandits.simulate.run import OPTIMIZERS, simulate

__all__ = ["OPTIMIZERS", "plot", "simulate", "summarise", "to_distribution"]
