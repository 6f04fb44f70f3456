"""Every closed form is one function: plain, jitted, vmapped or broadcast, with the right slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from theory import (
    distributions,
    equivalence,
    generation_verification,
    gibbs,
    mass_relocation,
    mode_seeking,
    partial_coverage,
    variable_length,
)

RNG = np.random.default_rng(0)
P, Q = RNG.dirichlet(np.ones(5), (2, 3))
TABLE, OTHER = np.log(RNG.dirichlet(np.ones(3), (2, 3, 4)))
TIED = np.array([0.5, 0.0, 0.5, 1.0, -1.0])
VALUES = {
    "p": P, "q": Q, "log_p": np.log(P), "log_q": np.log(Q), "table": TABLE, "other": OTHER,
    "lengths": np.log(P), "reward": RNG.normal(size=(3, 5)), "ties": TIED * [[1], [-1], [2]],
    "first": np.array([0, 3, 2]), "second": np.array([1, 0, 4]), "n": np.array([1, 3, 8]),
    "beta": np.array([0.1, 1.0, 5.0]), "rate": np.array([0.1, 1.0, 10.0]),
    "c1": np.array([1.0, 0.5, 0.1]), "c2": np.array([1.0, 2.0, 0.3]), "a": P[:, 0], "b": Q[:, 0],
    "kl": np.array([0.05, 0.2, 1.0]), "margin": np.array([-1.0, 0.5, 7.0]), "zero": np.zeros(3),
    "size": np.array([2, 10, 1000]), "pairs": np.array([1.0, 7.0, 300.0]),
}  # fmt: skip
DISCRETE = {"first", "second", "n", "size"}
# A step off the simplex changes what a KL is, so slopes are taken along it.
ALONG = dict.fromkeys(("p", "q"), lambda x: x / jnp.sum(x)) | dict.fromkeys(
    ("log_p", "log_q", "table", "other", "lengths"), jax.nn.log_softmax
)
CONTENT = np.log(np.array([0.3, 0.7], np.float32))

SMOOTH = {
    "log_p log_q": [distributions.kl_divergence, distributions.concentrability,
                    mode_seeking.reverse_kl_gradient],
    "log_p zero": [lambda log_p, zero: distributions.entropy(log_p) + zero],
    "reward log_q beta": [gibbs.gibbs_log_probs, gibbs.optimal_value],
    "log_p reward log_q beta": [gibbs.regularised_objective, mode_seeking.policy_gradient],
    "log_p log_q beta": [equivalence.implicit_reward],
    "p q rate": [mass_relocation.forward_kl_step, mass_relocation.reverse_kl_step],
    "p q first second": [mass_relocation.relative_change, mass_relocation.relocation_gap,
                         mass_relocation.equal_target_threshold],
    "q first second": [mass_relocation.equal_policy_threshold],
    "a b": [mass_relocation.logarithmic_mean, mass_relocation.identric_mean],
    "a b margin": [partial_coverage.displaced],
    "log_p reward": [mode_seeking.weighted_likelihood_gradient],
    "log_p first second rate c1 c2": [mode_seeking.contrastive_step, mode_seeking.margin_growth,
                                      mode_seeking.winner_growth],
    "table zero": [lambda table, zero: variable_length.length_log_probs(table) + zero[..., None],
                   lambda table, zero: variable_length.sequence_entropy(table) + zero],
    "table other": [variable_length.sequence_kl],
    "lengths zero": [lambda law, zero: variable_length.table_of_lengths(law, CONTENT)
                     + zero[..., None, None]],
    "size pairs": [generation_verification.seen_share],
}  # fmt: skip
OTHERS = {
    "reward log_q kl": [gibbs.gibbs_at_kl],
    "log_p ties n": [mode_seeking.best_of_n_log_probs, mode_seeking.best_of_n_gradient],
    "p q first second": [mass_relocation.reverse_moves_more],
    "log_p first second": [mode_seeking.negative_gradient_helps_winner],
}


def cases(*tables):
    return [
        pytest.param(function, names.split(), id=f"{function.__name__}-{names}")
        for table in tables for names, functions in table.items() for function in functions
    ]  # fmt: skip


@pytest.mark.parametrize(("function", "names"), cases(SMOOTH, OTHERS))
def test_rows_alone_jitted_vmapped_and_broadcast_agree(function, names, float64, assert_transforms):
    assert_transforms(function, *(VALUES[name] for name in names))


@pytest.mark.parametrize(("function", "names"), cases(SMOOTH))
def test_slopes_are_finite_differences(function, names, float64):
    row = {name: VALUES[name][0] for name in names}
    moved = {name: value for name, value in row.items() if name not in DISCRETE}

    def of_moved(moved):
        along = {name: ALONG.get(name, lambda x: x)(value) for name, value in moved.items()}
        return function(*(along.get(name, row[name]) for name in names))

    check_grads(jax.jit(of_moved), [moved], order=1, modes=["rev"], eps=1e-6)


@pytest.mark.parametrize(("function", "names"), cases(SMOOTH, OTHERS))
def test_single_precision_is_kept(function, names):
    single = [VALUES[name].astype(np.float32 if name not in DISCRETE else int) for name in names]
    for found in jax.tree.leaves(function(*single)):
        assert found.dtype in (np.float32, bool)
