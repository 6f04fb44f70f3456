"""A contextual bandit with domains: prompts have features, and every response a reward in them.

r(x, k) = x·w_k/√d for a prompt x of d features and K responses. The prompts of a domain have most
of their variance in its own block of features, so that what is learned on one domain says little of
another. The reference is linear in x too, and leans towards the reward by a chosen amount. Source:
the setting of arXiv:2406.09279 at didactic scale.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from bandits.policies.sampling import sample_categorical
from bandits.problems.preferences import preference_probabilities, tempered
from theory import checks
from theory.checks import InvalidInput
from theory.types import (
    FiniteNonNegative,
    Integers,
    NonNegative,
    Positive,
    Probability,
    TwoOrMore,
    Whole,
    checked,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ContextualBandit:
    """Prompts of D domains with d features, and K responses with a reward and a reference.

    Attributes:
      weights: ``[d, K]``, weights of the rewards.
      reference_weights: ``[d, K]``, weights of the reference's logits.
      spread: ``[D, d]``, the standard deviation of each feature in each domain.
    """

    weights: Float[Array, "d K"]
    reference_weights: Float[Array, "d K"]
    spread: Float[Array, "D d"]

    def rewards(self, prompts: Float[Array, "*batch d"]) -> Float[Array, "*batch K"]:
        """Return r(x, ·) for prompts x ``[..., d]``."""
        return prompts @ self.weights / self.weights.shape[0] ** 0.5

    def reference_log_probs(self, prompts: Float[Array, "*batch d"]) -> Float[Array, "*batch K"]:
        """Return log π_ref(·|x) for prompts x ``[..., d]``."""
        return jax.nn.log_softmax(prompts @ self.reference_weights)

    @checked
    def draw_prompts(self, key: PRNGKeyArray, domain: Integers, count: int) -> Float[Array, "n d"]:
        """Sample ``count`` prompts of a domain from 0 to D − 1.

        Raises:
          InvalidInput: For a domain that no prompt has.
        """
        known = checks.concrete(domain)
        if known is not None and not ((known >= 0) & (known < len(self.spread))).all():
            raise InvalidInput(
                f"domain is {domain}; no prompt has it, they go from 0 to {len(self.spread) - 1}"
            )
        return self.spread[domain] * jax.random.normal(key, (count, self.spread.shape[1]))


@checked
def random_contextual_bandit(
    key: PRNGKeyArray,
    num_arms: TwoOrMore = 12,
    num_features: Whole = 12,
    num_domains: Whole = 2,
    alignment: Probability = 0.3,
    off_domain: NonNegative = 0.3,
) -> ContextualBandit:
    """Sample a bandit with standard normal weights.

    Args:
      key: Key of the weights.
      num_arms: K >= 2.
      num_features: d, a multiple of the domains.
      num_domains: D >= 1.
      alignment: Correlation of the reference's logits with the rewards, from 0 to 1.
      off_domain: Standard deviation of features of other domains, >= 0; that of its own is 1.

    Raises:
      InvalidInput: For values out of range.
    """
    checks.require_multiple("num_features", num_features, "num_domains", num_domains)
    weight_key, reference_key = jax.random.split(key)
    weights = jax.random.normal(weight_key, (num_features, num_arms))
    noise = jax.random.normal(reference_key, weights.shape)
    lean = jnp.asarray(alignment)
    reference = (lean * weights + jnp.sqrt(1.0 - lean**2) * noise) / num_features**0.5
    block = jnp.arange(num_features) // (num_features // num_domains)
    own = jnp.arange(num_domains)[:, None] == block
    return ContextualBandit(weights, reference, jnp.where(own, 1.0, off_domain))


@checked
def draw_preferences(
    key: PRNGKeyArray,
    bandit: ContextualBandit,
    prompts: Float[Array, "n d"],
    *,
    temperature: FiniteNonNegative = 0.3,
    label_noise: Probability = 0.0,
    coverage: Positive = 1.0,
) -> Int[Array, "n 2"]:
    """Sample a pair of responses to each prompt, the preferred one first.

    Args:
      key: Key of responses and labels.
      bandit: Its rewards are the true ones, which the labeller sees with noise.
      prompts: ``[n, d]``, one pair each.
      temperature: Temperature of the labeller, in units of the reward, >= 0.
      label_noise: Probability that a label is flipped.
      coverage: τ > 0 of the law π_ref^(1/τ) of the responses: below 1 it is narrower.

    Raises:
      InvalidInput: For values out of range.
    """
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
