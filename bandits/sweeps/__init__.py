"""Parameter sweeps: a grid of axes, one vmapped program, labelled results in memory or on disk.

`bandits.sweeps.stored`, for the disk, is imported where it is needed: Zarr takes its time.
"""

from bandits.sweeps.grid import choices, static
from bandits.sweeps.sweep import DivergenceWarning, sweep

__all__ = ["DivergenceWarning", "choices", "static", "sweep"]
