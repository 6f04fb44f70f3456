"""Methods, by family: a method is a loss on log-probabilities, and what marks it."""

from bandits.losses.base import Method
from bandits.losses.divergences import forward_kl, reverse_kl

METHODS: dict[str, Method] = {
    "forward_kl": Method(
        loss=forward_kl,
        formula="KL(q‖p) = Σ q (log q − log p)",
        source="T24, section 6",
        on_policy=False,
        reuses_samples=False,
        negative_gradient=False,
    ),
    "reverse_kl": Method(
        loss=reverse_kl,
        formula="KL(p‖q) = Σ p (log p − log q)",
        source="T24, Lemma 6.1",
        on_policy=True,
        reuses_samples=False,
        negative_gradient=True,
    ),
}
"""Every method by name: what the command lists and takes."""

__all__ = ["METHODS", "Method", "forward_kl", "reverse_kl"]
