"""List the studies of the gallery: a new study is a class, and a line here."""

from bandits.studies.i24 import four_aspects, overoptimisation
from bandits.studies.s25 import (
    coverage_sweep,
    displacement,
    generation_verification_gap,
    kl_projections,
    online_offline_hypotheses,
    partial_coverage,
    rlhf_dpo_equivalence,
    simplex_paths,
)
from bandits.studies.study import Claim, Study
from bandits.studies.t24 import (
    ablations,
    combinatorial,
    geometry_map,
    lemmas,
    length_problems,
    mass_relocation,
    preference_log_probs,
    three_modes,
)

STUDIES: dict[str, type[Study]] = {
    study.name: study
    for study in (
        three_modes.ModeSeeking,
        mass_relocation.MassRelocation,
        three_modes.LearningRateSweep,
        lemmas.Lemmas,
        lemmas.Weights,
        ablations.DataDistribution,
        ablations.OnPolicyBatchSize,
        ablations.SampleReuse,
        ablations.NegativeGradient,
        preference_log_probs.PreferenceLogProbs,
        ablations.Complementarity,
        combinatorial.Combinatorial,
        geometry_map.GeometryMap,
        partial_coverage.PartialCoverage,
        displacement.Displacement,
        rlhf_dpo_equivalence.RlhfDpoEquivalence,
        generation_verification_gap.GenerationVerificationGap,
        coverage_sweep.CoverageSweep,
        online_offline_hypotheses.OnlineOfflineHypotheses,
        kl_projections.KlProjections,
        simplex_paths.SimplexPaths,
        length_problems.LengthProblems,
        length_problems.LengthModels,
        length_problems.LengthBatchSize,
        length_problems.LengthSampleReuse,
        overoptimisation.Overoptimisation,
        four_aspects.FourAspects,
        four_aspects.UnlabelledPrompts,
    )
}

__all__ = ["STUDIES", "Claim", "Study"]
