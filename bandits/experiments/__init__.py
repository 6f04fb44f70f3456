"""The gallery: one module an experiment. A new one is a module and a line here."""

from bandits.experiments import learning_rate_sweep, mass_relocation, mode_seeking
from bandits.experiments.base import Claim, Experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        mode_seeking.EXPERIMENT,
        mass_relocation.EXPERIMENT,
        learning_rate_sweep.EXPERIMENT,
    )
}

__all__ = ["EXPERIMENTS", "Claim", "Experiment"]
