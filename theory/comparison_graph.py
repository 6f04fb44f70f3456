"""What pairs of arms leave open, read from the graph of who was preferred to whom.

Between groups of arms that no pair compares, the data say nothing about the gap in reward. Where
some arms never lost to the others, the reward of maximum likelihood is infinite: it is finite if
and only if every group is strongly connected by "was preferred to". Source: Ford 1957, "Solution
of a ranking problem from binary comparisons".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jax.typing import ArrayLike
from scipy import sparse
from scipy.sparse import csgraph

from theory.pairs import Pairs, require_pairs

MOST_NAMED = 5
"""Number of arms, or of groups of arms, that a sentence names before it says how many others."""


@dataclass(frozen=True)
class Finding:
    """One thing about the rewards that the pairs leave open.

    Attributes:
      kind: "no data": no pair has these arms; "never compared": no pair compares these groups of
        arms with one another; "separable": one of these two groups never lost to the other,
        though pairs compare them.
      groups: Groups of arms from 0 to K − 1, the smallest first.
      unbeaten: Index of the group that never lost; for "separable" only.
    """

    kind: Literal["no data", "never compared", "separable"]
    groups: tuple[tuple[int, ...], ...]
    unbeaten: int = 0


def undetermined(pairs: Pairs, num_arms: int) -> list[Finding]:
    """List what the pairs leave open, in time that grows with the arms plus the pairs.

    >>> [finding.kind for finding in undetermined(Pairs.from_table([[0, 1], [0, 0]]), num_arms=2)]
    ['separable']

    Pairs of weight 0 do not count; those that `theory.pairs.require_pairs` refuses raise
    `InvalidInput`. The list holds at most one finding of kind "no data", then at most one of kind
    "never compared", then one or two of kind "separable" for each group of compared arms that has
    some: all arms of the group that never lost to the others of it, and all that never won. Without
    findings the likelihood alone fixes every reward, up to a constant.
    """
    require_pairs("pairs", pairs, num_arms)
    used = np.asarray(pairs.weights) > 0
    winners, losers = np.asarray(pairs.winners)[used], np.asarray(pairs.losers)[used]
    graph = sparse.csr_array((np.ones(len(winners)), (winners, losers)), (num_arms, num_arms))
    _, component = csgraph.connected_components(graph, directed=False)
    members = np.argsort(component, kind="stable").tolist()
    ends = np.cumsum(np.bincount(component)).tolist()
    parts = [members[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    compared = [arms for arms in parts if len(arms) > 1]
    alone = tuple(arms[0] for arms in parts if len(arms) == 1)
    findings = [Finding("no data", (alone,))] if alone else []
    if len(compared) > 1:
        groups = tuple(tuple(arms) for arms in sorted(compared, key=len))
        findings.append(Finding("never compared", groups))
    # Arms of one strong component beat one another, directly or through others.
    num_strong, strong = csgraph.connected_components(graph, connection="strong")
    across = strong[winners] != strong[losers]
    lost, won = np.zeros(num_strong, bool), np.zeros(num_strong, bool)
    lost[strong[losers[across]]] = True
    won[strong[winners[across]]] = True
    # +1 for what beats others and never loses to them, −1 for the opposite, 0 for the rest.
    side = ((won & ~lost).astype(int) - (lost & ~won))[strong].tolist()
    for arms in compared:
        top, middle, bottom = ([arm for arm in arms if side[arm] == s] for s in (1, 0, -1))
        if top:
            findings.append(_separable(top, sorted(middle + bottom)))
        if top and middle:
            findings.append(_separable(sorted(top + middle), bottom))
    return findings


def describe(finding: Finding, labels: Sequence[object], ridge: ArrayLike) -> str:
    """Return one sentence that says what a finding means for the rewards.

    Labels name all K arms; the ridge is that of `theory.bradley_terry.fit_tabular`.
    """
    named = [_name([str(labels[arm]) for arm in group[: MOST_NAMED + 1]], len(group), "others")
             for group in finding.groups[: MOST_NAMED + 1]]  # fmt: skip
    several = len(finding.groups[0]) > 1
    if finding.kind == "no data":
        rewards = "their rewards to the mean" if several else "its reward to the mean"
        return f"no pair has {named[0]}: the prior alone sets {rewards}"
    if finding.kind == "never compared" and len(named) == 2:
        return (
            f"the pairs never compare {named[0]} with {named[1]}: the prior alone sets the gap "
            "between these groups"
        )
    if finding.kind == "never compared":
        groups = _name([f"({name})" for name in named], len(finding.groups), "other groups")
        return (
            f"the pairs never compare one of these groups with another: {groups}: the prior alone "
            "sets the gaps between them"
        )
    everyone = sum(map(len, finding.groups)) == len(labels)
    rest = "the others" if everyone and len(finding.groups[1]) > 1 else named[1]
    loses = ("never lose to" if several else "never loses to", "upper")
    wins = ("never win against" if several else "never wins against", "lower")
    verb, bound = loses if finding.unbeaten == 0 else wins
    rewards = "their rewards" if several else "its reward"
    return (
        f"{named[0]} {verb} {rest}: the data put no {bound} bound on {rewards}, the prior "
        f"(ridge {float(np.asarray(ridge)):g}) does"
    )


def _separable(unbeaten: list[int], beaten: list[int]) -> Finding:
    groups = tuple(unbeaten), tuple(beaten)
    if len(unbeaten) <= len(beaten):
        return Finding("separable", groups, unbeaten=0)
    return Finding("separable", groups[::-1], unbeaten=1)


def _name(names: list[str], count: int, others: str) -> str:
    """Join the first names of ``count``, and say how many others there are if more than one."""
    if count <= MOST_NAMED + 1:
        return ", ".join(names)
    return f"{', '.join(names[:MOST_NAMED])} and {count - MOST_NAMED} {others}"
