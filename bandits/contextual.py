"""A contextual bandit with domains: prompts have features, and every response a reward in them.

r(x, k) = x·w_k/√d for a prompt x of d features and K responses. The prompts of a domain have most
of their variance in its own block of features, so that what is learned on one domain says little of
another. The reference is linear in x too, and leans towards the reward by a chosen amount. Source:
the setting of arXiv:2406.09279 at didactic scale.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bandits.preferences import preference_probabilities, tempered
from bandits.sampling import sample_categorical
from theory import checks
from theory.checks import InvalidInput


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ContextualBandit:
    """Prompts, rewards and a reference.

    Attributes:
      weights: ``[d, K]``, of the rewards.
      reference_weights: ``[d, K]``, of the reference's logits.
      spread: ``[D, d]``, the standard deviation of each feature in each domain.
    """

    weights: Float[Array, "d K"]
    reference_weights: Float[Array, "d K"]
    spread: Float[Array, "D d"]

    def rewards(self, prompts: Float[Array, "*batch d"]) -> Float[Array, "*batch K"]:
        """r(x, ·)."""
        return prompts @ self.weights / self.weights.shape[0] ** 0.5

    def reference_log_probs(self, prompts: Float[Array, "*batch d"]) -> Float[Array, "*batch K"]:
        """Log π_ref(·|x)."""
        return jax.nn.log_softmax(prompts @ self.reference_weights)

    def draw_prompts(self, key: PRNGKeyArray, domain: ArrayLike, count: int) -> Float[Array, "n d"]:
        """Fresh prompts of a domain. Raises InvalidInput for a domain that no prompt has."""
        checks.require_integer("domain", domain)
        known = checks.concrete(domain)
        if known is not None and not ((known >= 0) & (known < len(self.spread))).all():
            raise InvalidInput(
                f"domain is {domain}; no prompt has it, they go from 0 to {len(self.spread) - 1}"
            )
        return self.spread[domain] * jax.random.normal(key, (count, self.spread.shape[1]))


def random_contextual_bandit(
    key: PRNGKeyArray,
    num_arms: int = 12,
    num_features: int = 12,
    num_domains: int = 2,
    alignment: ArrayLike = 0.3,
    off_domain: ArrayLike = 0.3,
) -> ContextualBandit:
    """A bandit with standard normal weights.

    Args:
      key: of the weights.
      num_arms: K >= 2.
      num_features: d, a multiple of the domains.
      num_domains: D.
      alignment: from 0 to 1, the correlation of the reference's logits with the rewards.
      off_domain: standard deviation of the features that are not a domain's own, >= 0; its own: 1.

    Raises InvalidInput for values out of range.
    """
    checks.require_whole("num_arms", num_arms)
    if num_arms < 2:
        raise InvalidInput(f"num_arms is {num_arms}; at least 2 are needed")
    checks.require_whole("num_domains", num_domains)
    checks.require_whole("num_features", num_features)
    checks.require_multiple("num_features", num_features, "num_domains", num_domains)
    checks.require_probability("alignment", alignment)
    checks.require_nonnegative("off_domain", off_domain)
    weight_key, reference_key = jax.random.split(key)
    weights = jax.random.normal(weight_key, (num_features, num_arms))
    noise = jax.random.normal(reference_key, weights.shape)
    lean = jnp.asarray(alignment)
    reference = (lean * weights + jnp.sqrt(1.0 - lean**2) * noise) / num_features**0.5
    block = jnp.arange(num_features) // (num_features // num_domains)
    own = jnp.arange(num_domains)[:, None] == block
    return ContextualBandit(weights, reference, jnp.where(own, 1.0, off_domain))


def draw_preferences(
    key: PRNGKeyArray,
    bandit: ContextualBandit,
    prompts: Float[Array, "n d"],
    *,
    temperature: ArrayLike = 0.3,
    label_noise: ArrayLike = 0.0,
    coverage: ArrayLike = 1.0,
) -> Int[Array, "n 2"]:
    """A pair of responses to each prompt, the preferred one first.

    Args:
      key: of responses and labels.
      bandit: the true rewards, which the labeller sees with noise.
      prompts: one pair each.
      temperature: of the labeller, in units of the reward, >= 0.
      label_noise: probability that a label is flipped.
      coverage: τ of the law π_ref^(1/τ) that the responses come from: below 1 it is narrower.

    Raises InvalidInput for values out of range.
    """
    checks.require_probability("label_noise", label_noise)
    checks.require_positive("coverage", coverage)
    keys = jax.random.split(key, len(prompts))

    def label(key: PRNGKeyArray, prompt: Float[Array, " d"]) -> Int[Array, " 2"]:
        draw_key, label_key = jax.random.split(key)
        law = tempered(bandit.reference_log_probs(prompt), coverage)
        # A pair of equal responses is drawn as often as chance has it, and says nothing.
        pair = sample_categorical(draw_key, law, 2)
        wins = preference_probabilities(bandit.rewards(prompt)[pair], temperature, label_noise)
        right = jax.random.uniform(label_key) < wins[0, 1]
        return jnp.where(right, pair, pair[::-1])

    return jax.vmap(label)(keys, prompts)
