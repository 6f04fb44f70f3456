"""Bandits with controllable reward geometry, and the updates that move policies on them.

Names are loaded when first used, so that ``import bandits`` costs next to nothing.
"""

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "descent",
        "environments",
        "losses",
        "metrics",
        "policies",
        "preferences",
        "reward_models",
        "sampling",
        "simulate",
        "studies",
        "sweeps",
        "training",
    ],
    submod_attrs={
        "descent": ["descend", "log_spaced_steps"],
        "environments": ["CategoricalBandit"],
        "metrics": ["measure"],
        "sweeps": ["choices", "static", "sweep"],
        "sweeps.stored": ["stored_sweep"],
        "training": ["Schedule", "make_trainer", "train"],
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
