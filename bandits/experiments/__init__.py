"""The gallery: one module an experiment. A new one is a module and a line here."""

from bandits.experiments import (
    combinatorial,
    complementarity,
    coverage_sweep,
    data_distribution,
    displacement,
    four_aspects,
    generation_verification_gap,
    geometry_map,
    kl_projections,
    learning_rate_sweep,
    lemmas,
    length_batch_size,
    length_models,
    length_problems,
    length_sample_reuse,
    mass_relocation,
    mode_seeking,
    negative_gradient,
    on_policy_batch_size,
    online_offline_hypotheses,
    overoptimisation,
    partial_coverage,
    preference_log_probs,
    rlhf_dpo_equivalence,
    sample_reuse,
    simplex_paths,
    unlabelled_prompts,
    weights,
)
from bandits.experiments.base import Claim, Experiment

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        mode_seeking.EXPERIMENT,
        mass_relocation.EXPERIMENT,
        learning_rate_sweep.EXPERIMENT,
        lemmas.EXPERIMENT,
        weights.EXPERIMENT,
        data_distribution.EXPERIMENT,
        on_policy_batch_size.EXPERIMENT,
        sample_reuse.EXPERIMENT,
        negative_gradient.EXPERIMENT,
        preference_log_probs.EXPERIMENT,
        complementarity.EXPERIMENT,
        combinatorial.EXPERIMENT,
        geometry_map.EXPERIMENT,
        partial_coverage.EXPERIMENT,
        displacement.EXPERIMENT,
        rlhf_dpo_equivalence.EXPERIMENT,
        generation_verification_gap.EXPERIMENT,
        coverage_sweep.EXPERIMENT,
        online_offline_hypotheses.EXPERIMENT,
        kl_projections.EXPERIMENT,
        simplex_paths.EXPERIMENT,
        length_problems.EXPERIMENT,
        length_models.EXPERIMENT,
        length_batch_size.EXPERIMENT,
        length_sample_reuse.EXPERIMENT,
        overoptimisation.EXPERIMENT,
        four_aspects.EXPERIMENT,
        unlabelled_prompts.EXPERIMENT,
    )
}

__all__ = ["EXPERIMENTS", "Claim", "Experiment"]
