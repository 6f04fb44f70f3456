"""The page is complete in itself, and holds what the sweep found."""

import base64
import gzip
import json
import re

import numpy as np

from bandits.explorer.page import pack


def told(page):
    return json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.S).group(1))


def unpacked(text, dtype, shape):
    return np.frombuffer(gzip.decompress(base64.b64decode(text)), dtype).reshape(shape)


def test_it_loads_nothing_and_is_small(page):
    assert len(page.encode()) < 3e6
    assert not re.search(r"<script[^>]+src=|<link[^>]+href=|@import", page)


def test_it_holds_policies_pushes_rewards_and_divergences(page, dataset):
    data, shape = told(page), dataset["policy"].shape
    kept = dataset["policy"].notnull().values
    roots = unpacked(data["policy"], "u1", shape)
    np.testing.assert_allclose(
        (roots / 255)[kept], np.sqrt(dataset["policy"].values)[kept], atol=0.5 / 255 + 1e-6
    )
    pushes = np.nan_to_num(dataset["push"].values)
    largest = np.abs(pushes).max(-1, keepdims=True)
    moves = largest > 1e-3 * largest.max(-2, keepdims=True)
    shares = np.where(moves, pushes / np.where(moves, largest, 1.0), 0.0)
    seen = unpacked(data["push"], "i1", shape) / 127
    np.testing.assert_allclose(seen, shares, atol=0.5 / 127 + 1e-6)
    np.testing.assert_array_equal(unpacked(data["pushedMost"], "<f4", largest.shape), largest)
    for name, field, scale in (("reward", "reward", 1), ("kl", "reference_kl", data["klScale"])):
        values = unpacked(data[name], "<u2", shape[:-1]) / 65_535 * scale
        expected = dataset[field].values
        finite = np.isfinite(expected)
        np.testing.assert_allclose(values[finite], expected[finite], atol=scale / 65_535)
    assert data["divergedAt"] == dataset["diverged_at"].values.ravel().tolist()


def test_a_policy_that_rests_is_not_pushed(dataset):
    """What is left of rounding is no push."""
    faded = dataset["push"].copy(deep=True)
    faded.loc[{"step": 100}] = 1e-4 * faded.sel(step=0)
    pushes = unpacked(pack(dataset.assign(push=faded))["push"], "i1", dataset["policy"].shape)
    assert pushes[..., 0, :].any()
    assert not pushes[..., -1, :].any()


def test_it_says_which_methods_learn_from_data(page):
    uses = {method["name"]: method["usesData"] for method in told(page)["methods"]}
    assert uses == {
        "forward_kl": False, "reverse_kl": False, "best_of_n": False, "dpo": True, "ipo": True,
        "rlhf": True,
    }  # fmt: skip


def test_the_same_sweep_is_the_same_data(dataset):
    assert pack(dataset) == pack(dataset)
