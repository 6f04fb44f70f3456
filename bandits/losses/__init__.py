"""Methods, by family: a method is a loss on log-probabilities, and what marks it.

The marks are those of T24 (arXiv:2404.14367), table 1. The online forms are the offline losses on
the policy's own samples.
"""

from bandits.losses import contrastive, divergences, likelihood, policy_gradient
from bandits.losses.base import Loss, Method, response_weights, switch
from bandits.losses.divergences import forward_kl, jeffreys, jensen_shannon, reverse_kl, to_gibbs
from bandits.losses.responses import (
    Responses,
    make_group,
    make_pair,
    normalize_preferences,
    preferences_by_reward,
)

DIVERGENCES: dict[str, divergences.Divergence] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
    "jeffreys": jeffreys,
    "jensen_shannon": jensen_shannon,
}
"""Losses of (log_probs, target_log_probs), for `bandits.descend`."""

# Columns: on-policy, reuses samples, negative gradient.
METHODS: dict[str, Method] = {
    "forward_kl": Method(
        to_gibbs(forward_kl), "divergence", "KL(q‖p) = Σ q (log q − log p)",
        "T24, section 6", False, False, False, "whole space",
        "forward KL", "#0072B2",
    ),
    "reverse_kl": Method(
        to_gibbs(reverse_kl), "divergence", "KL(p‖q) = Σ p (log p − log q)",
        "T24, Lemma 6.1", True, False, True, "whole space",
        "reverse KL", "#D55E00",
    ),
    "jeffreys": Method(
        to_gibbs(jeffreys), "divergence", "KL(q‖p) + KL(p‖q)",
        "Jeffreys 1946", True, False, True, "whole space",
        "Jeffreys", "#CC79A7",
    ),
    "jensen_shannon": Method(
        to_gibbs(jensen_shannon), "divergence", "½ KL(q‖m) + ½ KL(p‖m), m = (p + q)/2",
        "Lin 1991", True, False, True, "whole space",
        "Jensen–Shannon", "#8C564B",
    ),
    "supervised": Method(
        likelihood.supervised, "likelihood", "−mean log π(y)",
        "SFT, T24, section 3", False, True, False, "responses",
        "SFT", "#999933",
    ),
    "preference_likelihood": Method(
        likelihood.preference_likelihood, "likelihood", "−mean log π(y_w)",
        "Pref-FT, T24, section 3", False, True, False, "preferences",
        "Pref-FT", "#009E73",
    ),
    "best_of_n": Method(
        likelihood.best_of_n, "likelihood", "−log π(y*), y* the best of N",
        "T24, section 3", True, True, False, "rewards",
        "best-of-N", "#56B4E9", in_groups=True,
    ),
    "reward_weighted": Method(
        likelihood.reward_weighted, "likelihood", "−mean exp(r/τ) log π(y)",
        "RWR, Peters and Schaal 2007", True, True, False, "rewards",
        "RWR", "#117733",
    ),
    "advantage_weighted": Method(
        likelihood.advantage_weighted, "likelihood", "−mean min(exp((r − b)/τ), 20) log π(y)",
        "AWR, arXiv:1910.00177", True, True, False, "rewards",
        "AWR", "#44AA99",
    ),
    "dpo": Method(
        contrastive.dpo, "contrastive", "−mean log σ(β h), h the log-ratio margin",
        "arXiv:2305.18290", False, True, True, "preferences",
        "DPO", "#E69F00",
    ),
    "online_dpo": Method(
        contrastive.dpo, "contrastive", "dpo on the policy's own pairs",
        "T24, section 5", True, True, True, "preferences",
        "online DPO", "#B37400",
    ),
    "ipo": Method(
        contrastive.ipo, "contrastive", "mean (h − 1/(2τ))²",
        "arXiv:2310.12036", False, True, True, "preferences",
        "IPO", "#882255",
    ),
    "online_ipo": Method(
        contrastive.ipo, "contrastive", "ipo on the policy's own pairs",
        "T24, section 5", True, True, True, "preferences",
        "online IPO", "#5C0F38",
    ),
    "hypo": Method(
        contrastive.hypo, "contrastive", "dpo + λ KL(π‖π_ref) on the policy's own samples",
        "arXiv:2406.01462", True, True, True, "preferences and samples",
        "HyPO", "#1A1A1A",
    ),
    "spin": Method(
        contrastive.dpo, "contrastive", "dpo, demonstrations preferred to the policy's own",
        "arXiv:2401.01335", True, True, True, "demonstrations",
        "SPIN", "#88AA22", passes=10,
    ),
    "hinge": Method(
        contrastive.hinge, "contrastive", "mean max(0, 1 − β h)",
        "arXiv:2402.05749", False, True, True, "preferences",
        "hinge", "#DDCC77",
    ),
    "slic": Method(
        contrastive.slic, "contrastive", "mean max(0, δ − log π(y_w)/π(y_l)) − λ log π(y_w)",
        "SLiC-HF, arXiv:2305.10425", False, True, True, "preferences",
        "SLiC", "#AA4499",
    ),
    "best_of_n_minus_worst": Method(
        contrastive.best_of_n_minus_worst, "contrastive", "−log π(y*) + c log π(y⁻)",
        "T24, section 5", False, True, True, "rewards",
        "best-of-N − worst", "#332288", in_groups=True,
    ),
    "best_of_n_minus_mean": Method(
        contrastive.best_of_n_minus_mean, "contrastive", "−log π(y*) + c mean log π(y ≠ y*)",
        "T24, section 5", False, True, True, "rewards",
        "best-of-N − mean", "#6655BB", in_groups=True,
    ),
    "best_of_n_minus_sum": Method(
        contrastive.best_of_n_minus_sum, "contrastive", "−log π(y*) + c Σ log π(y ≠ y*)",
        "T24, section 5", False, True, True, "rewards",
        "best-of-N − sum", "#9A8FD9", in_groups=True,
    ),
    "unlikelihood": Method(
        contrastive.unlikelihood, "contrastive", "−log π(y*) − c mean log(1 − π(y ≠ y*))",
        "arXiv:1908.04319", False, True, True, "rewards",
        "unlikelihood", "#661100", in_groups=True,
    ),
    "reinforce": Method(
        policy_gradient.reinforce, "policy gradient",
        "−mean A log π(y), A = r − β log(π/π_ref) − b",
        "Williams 1992", True, False, True, "rewards",
        "REINFORCE", "#CC6677",
    ),
    "ppo": Method(
        policy_gradient.ppo, "policy gradient", "−mean min(ρ A, clip(ρ, 1 ± ε) A), ρ = π/π_old",
        "arXiv:1707.06347", True, True, True, "rewards",
        "PPO", "#AA3311", passes=4,
    ),
    "rlhf": Method(
        policy_gradient.soft_optimize, "policy gradient",
        "−Σ π r + β KL(π‖π_ref), r fitted to the preferences before",
        "arXiv:2203.02155", True, False, True, "learned rewards",
        "RLHF", "#0A5C36",
    ),
}  # fmt: skip
"""Every method by name, as the command lists and takes them."""

__all__ = [
    "DIVERGENCES",
    "METHODS",
    "Loss",
    "Method",
    "Responses",
    "forward_kl",
    "jeffreys",
    "jensen_shannon",
    "make_group",
    "make_pair",
    "normalize_preferences",
    "preferences_by_reward",
    "response_weights",
    "reverse_kl",
    "switch",
]
