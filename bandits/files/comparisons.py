"""Read comparisons: which of two arms was preferred, how often, and to which prompt."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bandits.files.tables import (
    NUMBER,
    Table,
    counted,
    is_name,
    is_number,
    listed,
    normalise,
    read_content,
    read_frame,
    read_label,
    read_tables,
    read_values,
)
from theory import checks
from theory.checks import InvalidInput


class Layout(NamedTuple):
    """Names of the columns of one kind of file.

    Attributes:
      arms: columns of the two arms; the first is the winner unless another column decides.
      verdict: column that names the winner's column, the winner, or a tie.
      scores: columns of two scores; the higher wins, and equal ones are a tie.
      ratings: the same, where a file has them; they must not contradict who was chosen.
      prompt: column of the prompt, where arms are responses to one.
    """

    arms: tuple[str, str]
    verdict: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    ratings: tuple[str, ...] = ()
    prompt: tuple[str, ...] = ("prompt",)


CHOSEN = Layout(("chosen", "rejected"), ratings=("score_chosen", "score_rejected"))
LAYOUTS = (
    Layout(("winner", "loser")),
    CHOSEN,
    Layout(("winner_name", "loser_name"), prompt=()),
    Layout(("model_a", "model_b"), verdict=("winner",), prompt=()),
    Layout(("left", "right"), verdict=("winner",)),
    Layout(("home_team", "away_team"), scores=("home_score", "away_score"), prompt=()),
)
"""The first layout whose columns a file has is taken."""

GIVEN = Path("preferences")
"""The source of preferences that are given in Python, as errors name it."""

COUNTS = ("count", "n", "weight")
TIE = re.compile(r"tie(_?\(both_?bad\))?|both(_?bad)?|draw|equal")
"""Verdicts for neither arm."""

WORDS = {name for x in LAYOUTS for name in x.arms + x.verdict + x.scores}
WORDS |= {"prompt", "preferred", "dispreferred", "better", "worse", "win", "lose"}
"""Words in the first line that show it to be a header."""

TURN = "\n\nAssistant:"
"""The text before each answer where a whole dialogue is one text."""

ALTERNATIVE = re.compile(r"(?m)^[ \t]*#[ \t]*ALTERNATIVE NAME (\d+)[ \t]*:(.*)$")
OLD_PREFLIB = re.compile(r"\s*(\d+)\s*\n\s*1\s*,[^\n]*\n\s*2\s*,")
NUM_ALTERNATIVES = re.compile(r"[ \t]*#[ \t]*NUMBER ALTERNATIVES[ \t]*:[ \t]*(\d+)")
DATA_TYPE = re.compile(r"[ \t]*#[ \t]*DATA TYPE[ \t]*:[ \t]*(\w+)")
TIER = r"(?:\d+|\{\s*\d+(?:\s*,\s*\d+)*\s*\})"
RANKING = re.compile(rf"\s*([\d.eE+-]+)\s*:\s*({TIER}(?:\s*,\s*{TIER})*)\s*", re.ASCII)
EDGE = re.compile(r"^\s*(\d+)\s*,\s*(\d+)\s*,\s*([\d.eE+-]+)\s*$", re.ASCII)


@dataclass(frozen=True)
class Comparisons:
    """P labelled pairs of arms.

    Attributes:
      labels: names of the arms, in order of first appearance.
      winners: ``[P]``, places in ``labels`` of the preferred arms.
      losers: ``[P]``, places of the others.
      counts: ``[P]``, float64, how often, > 0; a pair may stand there more than once.
      prompts: names of the prompts, or None where the file has none.
      prompt_of: ``[P]``, place in ``prompts`` of each pair, or None.
    """

    labels: tuple[str, ...]
    winners: np.ndarray
    losers: np.ndarray
    counts: np.ndarray
    prompts: tuple[str, ...] | None = None
    prompt_of: np.ndarray | None = None


def read_comparisons(path: Path, arms: Sequence[str] | None = None) -> Comparisons:
    """Read which of two arms was preferred, from a file of any format.

    A table (text with any delimiter, JSON, JSON lines, Parquet) is recognised by the names of its
    columns, see `LAYOUTS`; without a header it is ``winner,loser`` or ``winner,loser,count``.
    PrefLib's rankings and weighted graphs, and a ``[K, K]`` array ``.npy`` of counts, are read too.
    A tie counts as half a win each way.

    Args:
      path: the file, or a pipe.
      arms: the names that are allowed, in order; they become the labels. By default all are.

    Raises:
      InvalidInput: the file cannot be read or holds no pairs, or a line is malformed or ambiguous,
        names an unknown arm, or prefers an arm to itself.
    """
    content = read_content(path)
    if isinstance(content, np.ndarray):
        return from_counts(str(path), content, arms)
    if isinstance(content, str) and content.lstrip()[:1] == "#" and ALTERNATIVE.search(content):
        return _read_preflib(path, content, arms)
    if isinstance(content, str) and OLD_PREFLIB.match(content):
        raise InvalidInput(
            f"{path} looks like PrefLib's format of before 2022, which is not read; download the "
            "file again, its lines now begin with # ALTERNATIVE NAME"
        )
    return _from_table(*_choose(path, read_tables(path, content)), arms)


def from_frame(frame: pd.DataFrame) -> Comparisons:
    """Return the pairs of a DataFrame, whose columns say what it holds as those of a file do."""
    return _from_table(*_choose(GIVEN, [read_frame(GIVEN, frame)]), None)


def from_records(records: list[dict[str, Any]]) -> Comparisons:
    """Return the pairs of records, whose keys are named as the columns of a file."""
    table = read_values(GIVEN, records, range(1, len(records) + 1), "row")
    return _from_table(*_choose(GIVEN, [table]), None)


def _choose(path: Path, tables: list[Table]) -> tuple[Table, Layout]:
    """Return the one way to read a file that fits a layout, with its columns named."""
    named = [table for table in tables if _find_layout(table.first())]
    plain = [table for table in tables if _is_plain(table)]
    plain = [table for table in plain if len(table.first()) == 3] or plain
    if not named and len(plain) > 1 and len(plain[0].first()) == 2:
        signs = " and ".join(repr(table.delimiter) for table in plain)
        plain[0].refuse(0, f"{signs} split all lines; add a header line such as winner,loser")
    table = (named or plain or tables)[0].settle(lambda x: _find_layout(x) is not None, _is_pair)
    if not table.rows:
        raise InvalidInput(f"{path} holds no preferences; give one pair a line: winner,loser")
    layout = _find_layout(table.header or ())
    if not layout and _is_plain(table):
        layout = LAYOUTS[0]
        start, *others = ({*map(str, row[:2])} for row in table.rows)
        if others and start.isdisjoint(set().union(*others)):
            table.say(f"took {table.unit} {table.places[0]} for a pair; its arms are in no other")
        table = replace(table, header=("winner", "loser", "count")[: len(table.rows[0])])
    if not layout:
        formats = "; ".join(",".join(x.arms + x.verdict + x.scores) for x in LAYOUTS)
        found = listed(table.first())
        table.refuse(0, f"the columns {found} fit no format; name them as one of: {formats}")
    return table, layout


def _find_layout(names: Sequence[Any]) -> Layout | None:
    known = set(map(normalise, names))
    return next((x for x in LAYOUTS if known.issuperset(x.arms + x.verdict + x.scores)), None)


def _is_plain(table: Table) -> bool:
    """Return whether it holds two names, and numbers in a third column only, without a header."""
    cells = table.first()
    if table.header or len(cells) not in (2, 3) or WORDS.intersection(map(normalise, cells)):
        return False
    if len(cells) == 3:
        return not is_name(cells[2]) and any(is_number(row[2]) for row in table.rows)
    # A name and a number is an arm with its value, with or without a header.
    below = table.rows[1:] or table.rows
    return not all(is_number(row[1]) for row in below) or all(is_number(row[0]) for row in below)


def _is_pair(cells: Sequence[Any]) -> bool:
    """Return whether a line that starts with ``#`` is a pair: no note, no commented header."""
    return not cells[0][1:2].isspace() and normalise(cells[0].strip("#")) not in WORDS


def _from_table(table: Table, layout: Layout, arms: Sequence[str] | None) -> Comparisons:
    columns = _find_columns(table, layout)
    cells = {name: [row[i] for row in table.rows] for name, i in columns.items()}
    left, right = (cells[name] for name in layout.arms)
    prompts = [_read_prompt(cell) for cell in cells["prompt"]] if "prompt" in cells else None
    if prompts and None in prompts:
        table.refuse(prompts.index(None), "the prompt is neither text nor a list of messages")
    if layout is CHOSEN:
        left, right, prompts = _split_answers(left, right, prompts)
    arm = functools.partial(_read_arm, table, may_be_empty=prompts is not None)
    pairs = [(arm(i, a), arm(i, b)) for i, (a, b) in enumerate(zip(left, right, strict=True))]
    counts = table.numbers(columns["count"]) if "count" in columns else np.ones(len(pairs))
    for i in np.flatnonzero(counts <= 0)[:1]:
        table.refuse(i, f"the count is {cells['count'][i]!r}; it must be a number > 0")
    shares = _find_shares(table, layout, columns, pairs)
    kept = _find_kept(table, pairs, prompts)
    if not kept:
        raise InvalidInput(f"{table.source} holds no preferences between different responses")

    labels = tuple(arms or dict.fromkeys(label for i in kept for label in pairs[i]))
    place = {label: i for i, label in enumerate(labels)}
    for i in kept:
        for label in pairs[i]:
            table.require(i, "arm", label, place)
    ways = np.array([[place[label] for label in pairs[i]] for i in kept])
    # Each row is a share of a win each way; a way without a share is no pair.
    weights = np.stack([shares, 1 - shares], axis=1)[kept] * counts[kept, None]
    won = weights > 0
    found = Comparisons(labels, ways[won], ways[:, ::-1][won], weights[won])
    if prompts is None:
        return found
    prompt_of, names = pd.factorize(np.array([prompts[i] for i in kept], object))
    return replace(found, prompts=tuple(names), prompt_of=np.repeat(prompt_of, won.sum(axis=1)))


def _find_columns(table: Table, layout: Layout) -> dict[str, int]:
    """Return the place of each column that is used; say which are not."""
    names = [normalise(name) for name in table.header or ()]
    rated = layout.ratings if set(layout.ratings) <= set(names) else ()
    used = {*layout.arms, *layout.verdict, *layout.scores, *rated, *layout.prompt, "count"}
    columns: dict[str, int] = {}
    for i, name in enumerate(names):
        role = "count" if name in COUNTS else name
        if role in columns:
            table.refuse(0, f"the columns {names[columns[role]]!r} and {name!r} say the same")
        if role in used:
            columns[role] = i
    table.say_columns(columns.values())
    return columns


def _read_arm(table: Table, index: int, cell: Any, may_be_empty: bool) -> str:
    """Return the name of an arm; a response to a prompt may be empty, another name may not."""
    label = read_label(cell)
    if label is None or not (label or may_be_empty):
        table.refuse(index, f"{cell!r} is no arm; give the name of one")
    return label


def _find_shares(
    table: Table, layout: Layout, columns: dict[str, int], pairs: Sequence[tuple[str, str]]
) -> np.ndarray:
    """Return the share of a win of each pair's first arm: 1, a half for a tie, or 0."""
    if layout.verdict:
        verdicts = [str(read_label(row[columns[layout.verdict[0]]])) for row in table.rows]
        judged = enumerate(zip(pairs, verdicts, strict=True))
        return np.array([_judge(table, layout, i, *pair) for i, pair in judged])
    scores = [table.numbers(columns[x]) for x in layout.scores + layout.ratings if x in columns]
    if not scores:
        return np.ones(len(pairs))
    shares = (1 + np.sign(scores[0] - scores[1])) / 2
    for i in np.flatnonzero(shares == 0)[: len(layout.ratings)]:
        why = f"the chosen response has the score {scores[0][i]:g}, the rejected {scores[1][i]:g}"
        table.refuse(i, f"{why}; the chosen one's must not be less")
    return shares


def _judge(table: Table, layout: Layout, index: int, pair: tuple[str, str], verdict: str) -> float:
    """Return the first arm's share of a win, where a verdict names an arm, a column or a tie."""
    for names, name in ((pair, verdict), (layout.arms, normalise(verdict))):
        if name in names:
            return float(name == names[0])
    if not TIE.fullmatch(normalise(verdict)):
        table.require(index, "winner", verdict, [*layout.arms, "tie", *pair])
    return 0.5


def _find_kept(
    table: Table, pairs: Sequence[tuple[str, str]], prompts: Sequence[str | None] | None
) -> list[int]:
    """Return the pairs of two arms and one prompt; refuse or say the others."""
    equal = [i for i, (a, b) in enumerate(pairs) if a == b]
    if equal and prompts is None:
        arm = pairs[equal[0]][0]
        table.refuse(equal[0], f"{arm!r} is preferred to itself; a pair needs two arms")
    apart = [i for i, prompt in enumerate(prompts or ()) if prompt is None]
    for what, dropped in (("equal responses", equal), ("different prompts", apart)):
        if dropped:
            table.say(f"skipped {counted([table.places[i] for i in dropped], 'pair')} of {what}")
    return sorted(set(range(len(pairs))) - {*equal, *apart})


def _split_answers(
    left: list[Any], right: list[Any], prompts: list[str | None] | None
) -> tuple[list[Any], list[Any], list[str | None] | None]:
    """Return the last answers of dialogues, and what stands before where no prompts are given."""
    first, second = ([_split_dialogue(x, prompts is None) for x in side] for side in (left, right))
    if prompts is None and any(before is not None for before, _ in first + second):
        prompts = [a if a == b else None for (a, _), (b, _) in zip(first, second, strict=True)]
    return [answer for _, answer in first], [answer for _, answer in second], prompts


def _split_dialogue(cell: Any, whole: bool) -> tuple[str | None, Any]:
    """Return the prompt and the answer; a text is split only if it is a whole dialogue."""
    if whole and isinstance(cell, str):
        before, turn, answer = cell.rpartition(TURN)
        return (before.strip() if turn else None), answer
    if isinstance(cell, list) and cell and isinstance(cell[-1], dict):
        return _read_prompt(cell[:-1]), cell[-1].get("content")
    return None, cell


def _read_prompt(cell: Any) -> str | None:
    """Return a prompt as text, or None if it is neither text nor messages."""
    if not isinstance(cell, list):
        return read_label(cell)
    if not all(isinstance(message, dict) for message in cell):
        return None
    if len(cell) == 1:
        return str(cell[0].get("content"))
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in cell)


def from_counts(name: str, counts: np.ndarray, arms: Sequence[str] | None) -> Comparisons:
    """Return the pairs of a table ``[K, K]``: [a, b] is how often a was preferred to b.

    Args:
      name: of the table, for refusals.
      counts: numbers of any shape, which are checked.
      arms: names of the K arms; by default their numbers.
    """
    checks.require_preferences(name, counts)
    labels = tuple(arms or map(str, range(len(counts))))
    checks.require_same_arms(**{name: counts, "reference": np.zeros(len(labels))})
    winners, losers = np.nonzero(counts)
    return Comparisons(labels, winners, losers, counts[winners, losers])


def _read_preflib(path: Path, text: str, arms: Sequence[str] | None) -> Comparisons:
    """Read PrefLib's rankings, or a graph whose edges are rankings of two.

    A ranking counts once for every pair that it orders; tied alternatives get half each way.
    """
    lines = text.split("\n")
    table = Table(path, lines, range(1, len(lines) + 1))
    place = {name: i for i, name in enumerate(arms or ())}
    numbers: dict[str, int] = {}
    kind, told, rankings = "", None, []
    for i, line in enumerate(lines):
        if match := ALTERNATIVE.match(line):
            name = match[2].strip()
            if arms:
                table.require(i, "arm", name, place)
            if not name or place.setdefault(name, len(place)) in numbers.values():
                table.refuse(i, f"{name!r} must be the name of one alternative")
            numbers[match[1]] = place[name]
        elif match := DATA_TYPE.match(line):
            kind = match[1]
            table.require(i, "data type", kind, ("soc", "soi", "toc", "toi", "wmd"))
        elif match := NUM_ALTERNATIVES.match(line):
            told = i, int(match[1])
        elif line.strip() and not line.lstrip().startswith("#"):
            rankings.append(i)
    if told and told[1] != len(numbers):
        table.refuse(told[0], f"it says {told[1]} alternatives, but {len(numbers)} are named")
    counts = np.zeros((len(place), len(place)))
    for i in rankings:
        tiers, count = _read_ranking(table, i, kind, numbers)
        ranked = [arm for tier in tiers for arm in tier]
        rank = np.repeat(range(len(tiers)), [len(tier) for tier in tiers])
        wins = (rank[:, None] < rank) + (rank[:, None] == rank) / 2
        counts[np.ix_(ranked, ranked)] += count * wins
    np.fill_diagonal(counts, 0)
    return from_counts(str(path), counts, tuple(place))


def _read_ranking(
    table: Table, index: int, kind: str, numbers: dict[str, int]
) -> tuple[list[list[int]], float]:
    """Return the arms of each tier of a line, the best tier first, and how often it was given."""
    line = str(table.rows[index])
    match = RANKING.fullmatch(EDGE.sub(r"\3: \1,\2", line))
    if not match:
        table.refuse(index, f"{line.strip()!r} is no ranking such as 5: 1,{{2,3}},4")
    count, tiers = match[1], [re.findall(r"\d+", tier) for tier in re.findall(TIER, match[2])]
    order = [number for tier in tiers for number in tier]
    for number in order:
        table.require(index, "alternative", number, numbers)
    if len(set(order)) < len(order):
        table.refuse(index, "an alternative stands there twice")
    if kind in ("soc", "toc") and len(order) < len(numbers):
        why = f"{len(order)} of {len(numbers)} alternatives, but {kind} is for complete orders"
        table.refuse(index, f"{why}; say DATA TYPE: {kind[:2]}i")
    if kind in ("soc", "soi") and len(tiers) < len(order):
        why = f"alternatives are tied, but {kind} is for strict orders"
        table.refuse(index, f"{why}; say DATA TYPE: t{kind[1:]}")
    if not NUMBER.fullmatch(count) or not 0 < float(count) < np.inf:
        table.refuse(index, f"the count is {count!r}; it must be a number > 0")
    return [[numbers[number] for number in tier] for tier in tiers], float(count)
