import numpy as np
import pytest
from numpy.testing import assert_allclose

from theory.laplacian import PRECONDITIONERS, gather, solve


def graph(seed, num_nodes=30, num_edges=60):
    rng = np.random.default_rng(seed)
    first = rng.integers(0, num_nodes, num_edges)
    second = (first + rng.integers(1, num_nodes, num_edges)) % num_nodes
    chain = np.arange(num_nodes - 1)
    ends = np.append(first, chain), np.append(second, chain + 1)
    return *ends, 10 ** rng.uniform(-2, 2, len(ends[0]))


@pytest.mark.parametrize("kind", PRECONDITIONERS)
@pytest.mark.parametrize("ridge", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_every_preconditioner_leads_to_the_dense_solution(kind, ridge, seed):
    first, second, weights = graph(seed)
    incidence = np.eye(30)[first] - np.eye(30)[second]
    matrix = incidence.T * weights @ incidence + ridge * np.eye(30)
    target = np.random.default_rng(seed).normal(size=30)
    target -= target.mean()
    untried = [kind, "whole"]
    found = solve(first, second, weights, ridge, target, untried)
    assert untried == [kind, "whole"]
    assert_allclose(matrix @ found, target, atol=1e-6)


def test_what_does_not_converge_is_not_tried_again(monkeypatch):
    monkeypatch.setitem(PRECONDITIONERS, "diagonal", 2)
    first, second, weights = graph(0)
    target, untried = np.eye(30)[0] - np.eye(30)[29], list(PRECONDITIONERS)
    found = solve(first, second, weights, 0.0, target, untried)
    assert untried == ["tree", "whole"]
    flow = weights * (found[first] - found[second])
    assert_allclose(gather(first, second, flow, 30), target, atol=1e-6)
