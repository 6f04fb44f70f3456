"""Datasets as `simulate` makes them, computed in NumPy by plain gradient descent on given pairs."""

import numpy as np
import pytest
import xarray as xr
from scipy.special import expit, log_softmax

UNITS = {
    "forward_kl": ("forward KL(target‖policy)", "nats"),
    "reverse_kl": ("reverse KL(policy‖target)", "nats"),
    "entropy": ("policy entropy", "nats"),
    "optimal_mass": ("probability of the best arms", "1"),
}


def _push(method, h, beta, tau):
    """−∂loss/∂h of one pair."""
    if method == "dpo":
        return beta * expit(-beta * h)
    return -2 * (h - 0.5 / tau)


def _loss(method, h, beta, tau):
    return np.logaddexp(0, -beta * h) if method == "dpo" else (h - 0.5 / tau) ** 2


def descend_on_pairs(method, reference, pairs, beta, tau, rate, steps):
    """The recorded log-policies ``[steps, K]``; Pref-FT (``preference_likelihood``) too."""
    start = np.log(reference)
    shares = np.array([pair[2] for pair in pairs], float)
    shares /= shares.sum()
    logits, found = start.copy(), []
    for step in range(max(steps) + 1):
        log_p = log_softmax(logits)
        if step in steps:
            found.append(log_p)
        change = np.zeros(len(reference))
        for (w, x, _), share in zip(pairs, shares, strict=True):
            if method == "preference_likelihood":
                change += share * (np.eye(len(reference))[w] - np.exp(log_p))
            else:
                h = (log_p - start)[w] - (log_p - start)[x]
                change[[w, x]] += np.array([1, -1]) * share * _push(method, h, beta, tau)
        logits = logits + rate * change
    return np.array(found)


def measure_pairs(method, log_p, reference, pairs, beta, tau):
    """What the trainer logs, over the steps."""
    scale = tau if method == "ipo" else beta
    ratio = log_p - np.log(reference)
    shares = np.array([pair[2] for pair in pairs], float)
    shares /= shares.sum()
    w, x = (np.array([pair[i] for pair in pairs]) for i in (0, 1))
    h = ratio[:, w] - ratio[:, x]
    loss = _loss(method, h, beta, tau) if method != "preference_likelihood" else -log_p[:, w]
    in_pairs = np.isin(np.arange(len(reference)), [*w, *x])
    return {
        "reward_scale": np.full(len(log_p), scale),
        "training_loss": loss @ shares,
        "rewards_chosen": scale * ratio[:, w] @ shares,
        "rewards_rejected": scale * ratio[:, x] @ shares,
        "reward_margin": scale * h @ shares,
        "reward_accuracy": ((h > 0) + 0.5 * (h == 0)) @ shares,
        "reference_kl": (np.exp(log_p) * ratio).sum(axis=1),
        "covered_mass": np.exp(log_p)[:, in_pairs].sum(axis=1),
    }, in_pairs


@pytest.fixture(scope="session")
def make_dataset():
    """A function: reference, pairs (winner, loser, weight), methods -> dataset.

    ``sweep`` is (name, values) of beta or tau; ``labels`` are the arms'.
    """

    def make(
        reference, pairs, methods=("dpo",), *, labels=None, beta=0.5, tau=0.5, rate=1.0,
        steps=(0, 1, 2, 5, 10, 30, 100), sweep=None, with_pairs=True,
    ):  # fmt: skip
        reference = np.asarray(reference, float) / np.sum(reference)
        target = np.roll(reference, 1)
        name, values = sweep or ("beta", [beta])
        runs = {}
        for method in methods:
            for value in values:
                both = {"beta": beta, "tau": tau} | {name: value}
                log_p = descend_on_pairs(method, reference, pairs, **both, rate=rate, steps=steps)
                pair_values, in_pairs = measure_pairs(method, log_p, reference, pairs, **both)
                p, log_q = np.exp(log_p), np.log(target)
                one = {
                    "log_probs": log_p,
                    "forward_kl": (target * (log_q - log_p)).sum(axis=1),
                    "reverse_kl": (p * (log_p - log_q)).sum(axis=1),
                    "entropy": -(p * log_p).sum(axis=1),
                    "optimal_mass": p[:, target.argmax()],
                } | (pair_values if with_pairs else {})
                runs[method, value] = one
        dims = ("loss", name, "step") if sweep else ("loss", "step")
        variables = {}
        for variable in runs[methods[0], values[0]]:
            stacked = np.array([[runs[m, v][variable] for v in values] for m in methods])
            if not sweep:
                stacked = stacked[:, 0]
            variables[variable] = ((*dims, *(["arm"] if variable == "log_probs" else [])), stacked)
        coords = {"loss": list(methods), "step": list(steps)}
        coords["arm"] = list(range(len(reference))) if labels is None else list(labels)
        if sweep:
            coords[name] = list(values)
        dataset = xr.Dataset(variables, coords, {"beta": beta, "optimizer": "sgd"})
        for variable, (long_name, units) in UNITS.items():
            dataset[variable].attrs.update(long_name=long_name, units=units)
        dataset["target_log_probs"] = ("arm", np.log(target))
        dataset["reference_log_probs"] = ("arm", np.log(reference))
        if with_pairs:
            dataset["reward_scale"] = dataset["reward_scale"].isel(step=0)
            dataset["in_pairs"] = ("arm", in_pairs)
        return dataset

    return make
