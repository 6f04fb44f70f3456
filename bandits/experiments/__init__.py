"""The gallery: a new study is a class, or a module, and a line here."""

from bandits.experiments import (
    ablations,
    combinatorial,
    coverage_sweep,
    displacement,
    four_aspects,
    generation_verification_gap,
    geometry_map,
    kl_projections,
    learning_rate_sweep,
    lemmas,
    length_ablations,
    length_models,
    length_problems,
    mass_relocation,
    mode_seeking,
    online_offline_hypotheses,
    overoptimisation,
    partial_coverage,
    preference_log_probs,
    rlhf_dpo_equivalence,
    simplex_paths,
    unlabelled_prompts,
    weights,
)
from bandits.experiments.base import Claim, Experiment
from bandits.experiments.study import Study

AnyStudy = Experiment | type[Study]

EXPERIMENTS: dict[str, AnyStudy] = {
    experiment.name: experiment
    for experiment in (
        mode_seeking.EXPERIMENT,
        mass_relocation.EXPERIMENT,
        learning_rate_sweep.EXPERIMENT,
        lemmas.EXPERIMENT,
        weights.EXPERIMENT,
        ablations.DataDistribution,
        ablations.OnPolicyBatchSize,
        ablations.SampleReuse,
        ablations.NegativeGradient,
        preference_log_probs.EXPERIMENT,
        ablations.Complementarity,
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
        length_ablations.LengthBatchSize,
        length_ablations.LengthSampleReuse,
        overoptimisation.EXPERIMENT,
        four_aspects.EXPERIMENT,
        unlabelled_prompts.EXPERIMENT,
    )
}

__all__ = ["EXPERIMENTS", "AnyStudy", "Claim", "Experiment", "Study"]
