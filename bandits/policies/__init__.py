"""Policies: pairs of pure functions over a pytree of parameters."""

from bandits.policies.base import Policy
from bandits.policies.tabular import tabular_softmax

__all__ = ["Policy", "tabular_softmax"]
