"""Bandits with controllable reward geometry, and the updates that move policies on them.

Names are loaded when first used, so that ``import bandits`` costs next to nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "descent",
        "environments",
        "experiments",
        "losses",
        "metrics",
        "policies",
        "preferences",
        "reward_models",
        "sampling",
        "simulate",
        "sweeps",
        "training",
    ],
    submod_attrs={
        "descent": ["descend", "log_spaced_steps"],
        "environments": ["CategoricalBandit"],
        "metrics": ["measure"],
        "sweeps": ["static", "sweep"],
        "sweeps.stored": ["stored_sweep"],
        "training": ["Schedule", "train"],
    },
)
