"""What is to be learned, from which preferences, and how a policy is judged."""

from bandits.policies.sampling import sample_categorical, sample_counts
from bandits.problems.contextual import ContextualBandit, draw_preferences, random_contextual_bandit
from bandits.problems.environments import (
    ENVIRONMENTS,
    CategoricalBandit,
    CoverageWarning,
    bump_bandit,
    far_bandit,
    near_bandit,
)
from bandits.problems.metrics import find_basins, highest_density_set, measure
from bandits.problems.preferences import label_pairs, preference_probabilities

__all__ = [
    "ENVIRONMENTS",
    "CategoricalBandit",
    "ContextualBandit",
    "CoverageWarning",
    "bump_bandit",
    "draw_preferences",
    "far_bandit",
    "find_basins",
    "highest_density_set",
    "label_pairs",
    "measure",
    "near_bandit",
    "preference_probabilities",
    "random_contextual_bandit",
    "sample_categorical",
    "sample_counts",
]
