"""Bandits with controllable reward geometry, and the updates that move policies on them.

Names are loaded when first used, so that ``import bandits`` costs next to nothing.
"""

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "losses",
        "plotting",
        "policies",
        "problems",
        "simulation",
        "studies",
        "sweeps",
        "training",
    ],
    submod_attrs={
        "losses": [
            "DIVERGENCES",
            "METHODS",
            "Method",
            "make_group",
            "make_pair",
            "response_weights",
        ],
        "losses.contrastive": [
            "best_of_n_minus_mean",
            "best_of_n_minus_sum",
            "best_of_n_minus_worst",
            "dpo",
            "hinge",
            "hypo",
            "ipo",
            "slic",
            "unlikelihood",
        ],
        "losses.divergences": ["forward_kl", "jeffreys", "jensen_shannon", "reverse_kl"],
        "losses.likelihood": [
            "advantage_weighted",
            "best_of_n",
            "preference_likelihood",
            "reward_weighted",
            "supervised",
        ],
        "losses.policy_gradient": ["ppo", "reinforce", "soft_optimize"],
        "policies": ["context_network", "log_linear", "tabular_softmax"],
        "problems": ["CategoricalBandit", "bump_bandit", "far_bandit", "measure", "near_bandit"],
        "simulation": ["simulate"],
        "studies": ["STUDIES"],
        "sweeps": ["choices", "static", "sweep"],
        "sweeps.stored": ["stored_sweep"],
        "training": [
            "Schedule",
            "descend",
            "log_spaced_steps",
            "make_trainer",
            "on_bandit",
            "on_whole_space",
            "train",
        ],
    },
)


def __getattr__(name: str) -> Any:
    if name != "__version__":
        return _load(name)
    from importlib import metadata

    try:
        return metadata.version("modeseek")
    except metadata.PackageNotFoundError:  # a copy of the code that is not installed
        return "0+unknown"
