import sys
from collections import Counter

import pytest

from bandits.bench import gallery, measure
from bandits.bench.peers import Sizes
from bandits.bench.updates import NO_TORCH, exact_peers


@pytest.fixture(scope="module")
def rows():
    return list(measure(quick=True, repeats=1))


def test_every_row_has_a_name_of_its_own_and_a_value_within_its_spread(rows):
    assert len({row.name for row in rows}) == len(rows)
    for row in rows:
        if row.value is None:
            assert row.note
        else:
            assert 0 < row.low <= row.value <= row.high


def test_every_promised_ratio_is_measured(rows):
    counts = Counter(row.target for row in rows)
    assert [counts[target] for target in ("<= 1.5", "<= 2", ">= 50", ">= 3")] == [2, 3, 2, 8]


def test_the_floor_is_measured_in_the_vectors_of_jax_and_in_ours(rows):
    named = {row.name: row for row in rows}
    for loss in ("forward_kl", "reverse_kl"):
        assert named[f"exact update: {loss} to one exp of JAX"].target == "<= 1.5"
        assert named[f"exact update: {loss} to one exp of ours"].value > 0


def test_a_missing_peer_is_said_and_neither_holds_nor_fails(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    rows = list(exact_peers(1, Sizes(runs=8, num_arms=4, steps=2)))
    missing = [row for row in rows if "PyTorch" in row.name]
    assert len(missing) == 2
    for row in missing:
        assert (row.value, row.holds, row.note) == (None, None, NO_TORCH)


def test_figures_are_timed_twice_and_held_to_their_limit(monkeypatch):
    commands = []
    monkeypatch.setattr(gallery, "_run", lambda command, environment: commands.append(command))
    first, again, *quick = gallery.figure_times(["mode_seeking"])
    assert first.target == again.target == "<= 10"
    assert first.holds
    assert [row.target for row in quick] == ["<= 100"] * 2
    assert [command[4:-2] for command in commands] == [["mode_seeking"]] * 2 + [
        ["--quick", "mode_seeking"]
    ] * 2
