"""The log of a preference trainer: what it says for sure of chosen, rejected and their mass.

A log is a ``trainer_state.json``, a table with the same columns, or a table of log-probabilities,
one pair a row. The names of columns vary between trainers and versions: ``rewards/chosen``,
``eval_rewards/chosen``, ``train/rewards/chosen`` and ``rewards_train/chosen`` are one quantity.

A reward is β log π(y)/π_ref(y). For one prompt, if both responses of a pair become less likely,
the rest of the responses have gained exactly what the two lost. Means over prompts keep only the
direction: a mean of log-probabilities is no sum of probabilities.
"""

import difflib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bandits import plotting
from bandits.tables import Table, listed, read_content, read_tables
from bandits.training_panel import Curve, Style, draw_panel, say_changes
from theory import checks

DEFAULT_BETA = 0.1
"""Of trainers; a log does not hold it."""

LOG_TWO = math.log(2)

NEAR = 0.005
"""How far a loss may lie from log 2, and an accuracy from another, to count as the same."""

REWARD_STILL, NATS_STILL = 5e-4, 5e-3
"""Changes below these count as none: of rewards, and of log-probabilities in nats."""

LAST_SHARE = 0.1
"""The end is the mean over this share of the entries, for batches differ."""

WORDS = {
    "rewards": "reward", "margins": "margin", "accuracies": "accuracy", "acc": "accuracy",
    "logps": "logp", "losses": "loss", "reject": "rejected", "reference": "ref",
    "test": "eval", "valid": "eval", "validation": "eval",
}  # fmt: skip
"""Words in the names of columns, and what stands for them."""

IGNORED = {"", "train", "policy"}

QUANTITIES = {
    "loss": "loss",
    "reward chosen": "rewards/chosen",
    "reward rejected": "rewards/rejected",
    "reward margin": "rewards/margins",
    "reward accuracy": "rewards/accuracies",
    "logp chosen": "logps/chosen",
    "logp rejected": "logps/rejected",
}
"""What is read, by the words of its name, and how it is called."""

ALIASES = {
    "margin": "reward margin",
    "accuracy": "reward accuracy",
    "global step": "step",
}

LOG_PROBS = ("logp chosen", "logp rejected", "ref logp chosen", "ref logp rejected")
PAIR_COLUMNS = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")


@dataclass(frozen=True)
class Log:
    """One course of training, or of evaluation.

    Attributes:
      part: "training", "evaluation" or "pairs".
      steps: ``[n]``, gradient steps.
      values: ``[n]`` each, by the names of `QUANTITIES`; NaN where an entry lacks it.
      beta: β of the rewards, or None where it is not known.
      pairs: number of pairs at the last step, of a table of pairs.
      both_fell: share of them whose responses are both less likely than under the reference.
    """

    part: str
    steps: np.ndarray
    values: Mapping[str, np.ndarray]
    beta: float | None
    pairs: int = 0
    both_fell: float = 0.0

    def ends(self, name: str) -> tuple[float, float]:
        """Return the first finite value, and the mean of the last tenth of the finite ones."""
        finite = self.values[name][np.isfinite(self.values[name])]
        if not finite.size:
            return math.nan, math.nan
        return float(finite[0]), float(finite[-self.last :].mean())

    @property
    def last(self) -> int:
        """Return how many entries the end is a mean of."""
        return 1 if self.pairs else max(1, int(LAST_SHARE * len(self.steps)))


def read_logs(path: Path, beta: float | None = None) -> list[Log]:
    """Read a trainer's log: training and evaluation apart, where there are both.

    Args:
      path: ``trainer_state.json``; or text with a header, JSON or JSON lines, with the columns of
        a trainer or with ``chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps``
        and, if there is one, ``step``.
      beta: β > 0 of the rewards. A trainer's log does not say; pairs take 0.1 by default.

    Raises:
      InvalidInput: the file cannot be read, holds no such columns, or a cell is no number.
    """
    if beta is not None:
        checks.require_positive("beta", beta)
    table = _read_table(path)
    columns = {_words(name): i for i, name in reversed(list(enumerate(table.first())))}
    columns = {ALIASES.get(words, words): i for words, i in columns.items()} | columns
    if all(name in columns for name in LOG_PROBS):
        return [_from_pairs(table, columns, DEFAULT_BETA if beta is None else beta)]
    logs = []
    for part, prefix in (("training", ""), ("evaluation", "eval ")):
        chosen, rejected = (columns.get(f"{prefix}reward {x}") for x in ("chosen", "rejected"))
        if chosen is not None and rejected is not None:
            logs += _from_entries(table, columns, part, prefix, beta)
    if not logs:
        _refuse_columns(table, columns)
    return logs


def _read_table(path: Path) -> Table:
    content = read_content(path)
    if isinstance(content, np.ndarray):
        raise checks.InvalidInput(f"{path} is an array; give a trainer's log, or a table of pairs")
    if not content.strip():
        raise checks.InvalidInput(f"{path} is empty")
    if isinstance(content, str) and content.lstrip().startswith("{"):
        try:
            state = json.loads(content)
        except (ValueError, RecursionError):
            state = None  # JSON lines, or a fault that `read_tables` finds
        if isinstance(state, dict) and ("log_history" in state or "global_step" in state):
            return _from_state(path, state)
    table = read_tables(path, content)[0].settle(
        lambda cells: any(re.search(r"[A-Za-z]{3}", str(cell)) for cell in cells), lambda _: False
    )
    if not table.rows:
        raise checks.InvalidInput(f"{path} holds no entries below its header")
    return table


def _from_state(path: Path, state: Mapping[str, Any]) -> Table:
    """Return the entries of ``log_history``, without the summary at its end."""
    history = state.get("log_history")
    if not isinstance(history, list):
        raise checks.InvalidInput(f"{path} has no list log_history; found {listed(list(state))}")
    places = [
        i for i, entry in enumerate(history, 1)
        if not isinstance(entry, dict) or "train_runtime" not in entry
    ]  # fmt: skip
    records = [history[i - 1] for i in places]
    table = Table(path, [], places, None, "log_history entry")
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            table.refuse(i, "it is no object")
    if not records:
        raise checks.InvalidInput(f"{path} has an empty log_history: nothing was logged")
    header = tuple(dict.fromkeys(key for record in records for key in record))
    rows = [[record.get(key) for key in header] for record in records]
    return Table(path, rows, places, header, "log_history entry")


def _words(name: Any) -> str:
    """Return the words of a column's name in one order, without those that say nothing."""
    text = re.sub(r"log_?probs?", "logp", str(name).lower())
    found = [WORDS.get(word, word) for word in re.split(r"[^a-z0-9]+", text)]
    order = ["eval", "global", "ref", "logp", "reward"]
    kept = [word for word in found if word not in IGNORED]
    return " ".join(sorted(kept, key=lambda word: order.index(word) if word in order else 9))


def _refuse_columns(table: Table, columns: Mapping[str, int]) -> None:
    names = [str(name) for name in table.first()]
    if sum(name in columns for name in LOG_PROBS) >= 2:
        wanted: Sequence[str] = [
            name
            for name, words in zip(PAIR_COLUMNS, LOG_PROBS, strict=True)
            if words not in columns
        ]
    else:
        wanted = [
            QUANTITIES[words]
            for words in ("reward chosen", "reward rejected")
            if words not in columns and f"eval {words}" not in columns
        ]
    known = (*QUANTITIES, *LOG_PROBS)
    others = [name for name in names if _words(name).removeprefix("eval ") not in known]
    near = [close for name in wanted for close in difflib.get_close_matches(name, others, 1)]
    hint = f"; did you mean {' and '.join(map(repr, dict.fromkeys(near)))}?" if near else ""
    raise checks.InvalidInput(
        f"{table.source} has no {' and no '.join(wanted)}{hint}; found {listed(names)}"
    )


def _column(table: Table, column: int | None, rows: Sequence[int]) -> np.ndarray:
    """Return numbers; NaN for what is missing and for what the trainer wrote as NaN."""
    if column is None:
        return np.full(len(rows), np.nan)
    cells = [table.rows[i][column] for i in rows]
    if any(isinstance(cell, str) and "," in cell for cell in cells):
        return table.numbers(column)[list(rows)]  # which knows decimal commas
    return np.array([_number(table, i, table.rows[i][column]) for i in rows], np.float64)


def _number(table: Table, row: int, cell: Any) -> float:
    if cell is None or cell == "":
        return math.nan
    try:
        if not isinstance(cell, bool):
            return float(cell)
    except (TypeError, ValueError, OverflowError):
        pass
    return table.refuse(row, f"{str(cell)[:40]!r} is not a number")


def _from_entries(
    table: Table, columns: Mapping[str, int], part: str, prefix: str, beta: float | None
) -> list[Log]:
    """Return the log of a part, or nothing if no entry is of that part."""
    chosen = columns[f"{prefix}reward chosen"]
    rows = [i for i, row in enumerate(table.rows) if row[chosen] not in (None, "")]
    if not rows:
        return []
    values = {
        name: _column(table, columns.get(f"{prefix}{words}"), rows)
        for words, name in QUANTITIES.items()
    }
    margin = values["rewards/chosen"] - values["rewards/rejected"]
    values["rewards/margins"] = np.where(
        np.isnan(values["rewards/margins"]), margin, values["rewards/margins"]
    )
    steps = _column(table, columns.get("step"), rows)
    if np.isnan(steps).all():
        steps = np.arange(1.0, len(rows) + 1)  # entries are counted where steps are not
    _require_steps(table, rows, steps)
    # A run that was resumed logs some steps again; what came last is what it went on with.
    unique, first = np.unique(steps[::-1], return_index=True)
    if len(unique) < len(steps):
        table.say(
            f"{len(steps) - len(unique)} entries of {part} repeat a step, as after a resume; the "
            "last one of each step is taken"
        )
    order = len(steps) - 1 - first
    return [Log(part, unique, {k: v[order] for k, v in values.items()}, beta)]


def _require_steps(table: Table, rows: Sequence[int], steps: np.ndarray) -> None:
    for i in np.flatnonzero(np.isnan(steps))[:1]:
        table.refuse(rows[i], "it has no step, as others have; add it, or leave the entry out")


def _from_pairs(table: Table, columns: Mapping[str, int], beta: float) -> Log:
    """Return means over the pairs of each step; without steps, the reference comes first."""
    rows = range(len(table.rows))
    log_probs = {name: _column(table, columns[name], rows) for name in LOG_PROBS}
    for name, column in log_probs.items():
        for i in np.flatnonzero(~(column <= 0))[:1]:
            given = str(table.rows[i][columns[name]])
            why = "a log-probability is a number <= 0; give log π, not −log π"
            table.refuse(i, f"{table.first()[columns[name]]} is {given!r}; {why}")
    chosen, rejected, ref_chosen, ref_rejected = log_probs.values()
    steps = _column(table, columns.get("step"), rows)
    up, down = chosen - ref_chosen, rejected - ref_rejected
    if np.isnan(steps).all():
        steps = np.ones(len(rows))
    _require_steps(table, rows, steps)
    known = np.unique(steps)

    def means(logp: tuple[np.ndarray, np.ndarray], ratios: tuple[np.ndarray, np.ndarray]) -> dict:
        margin = beta * (ratios[0] - ratios[1])
        columns = (
            np.logaddexp(0.0, -margin), beta * ratios[0], beta * ratios[1], margin,
            (margin > 0) + 0.5 * (margin == 0), *logp,
        )  # fmt: skip
        return {
            name: float(np.mean(column))
            for name, column in zip(QUANTITIES.values(), columns, strict=True)
        }

    entries = [
        means((chosen[at], rejected[at]), (up[at], down[at]))
        for at in (steps == step for step in known)
    ]
    if "step" not in columns:
        entries.insert(0, means((ref_chosen, ref_rejected), (0.0 * up, 0.0 * down)))
        known = np.array([0.0, 1.0])
    last = steps == steps.max()
    values = {name: np.array([e[name] for e in entries]) for name in QUANTITIES.values()}
    fell = float(np.mean((up[last] < 0) & (down[last] < 0)))
    return Log("pairs", known, values, beta, int(last.sum()), fell)


def summarise_log(log: Log) -> list[tuple[str, ...]]:
    """Return the rows quantity, start, end and change, under their names."""
    last = f"end (mean of {log.last})" if log.last > 1 else "end"
    rows: list[tuple[str, ...]] = [(log.part, f"start (step {log.steps[0]:g})", last, "change")]
    for name in QUANTITIES.values():
        start, end = log.ends(name)
        if not math.isnan(end):
            rows.append((name, f"{start:.4g}", f"{end:.4g}", f"{end - start:+.3g}"))
    return rows


def describe_log(log: Log) -> list[str]:
    """Return sentences that read the log: what moved, what follows, and what is amiss."""
    said = [_say_moves(log), _say_start(log), _say_accuracy(log), _say_kl(log), _say_gaps(log)]
    return [f"{log.part}: {sentence}." for sentence in said if sentence]


def _say_moves(log: Log) -> str:
    scale = log.beta or 1.0
    starts, ends = zip(*(log.ends(f"rewards/{x}") for x in ("chosen", "rejected")), strict=True)
    chosen, rejected = ((end - start) / scale for start, end in zip(starts, ends, strict=True))
    if math.isnan(chosen) or math.isnan(rejected):
        return "no entry has finite rewards of chosen and rejected"
    margin = log.ends("rewards/margins")
    unit = " nats" if log.beta else " in reward (β times nats)"
    still = NATS_STILL if log.beta else REWARD_STILL
    span = f"from step {log.steps[0]:,.0f} to {log.steps[-1]:,.0f} "
    moves = say_changes(chosen, rejected, (margin[1] - margin[0]) / scale, unit, still)
    moves = (f"{span}" if len(log.steps) > 1 and log.part != "pairs" else "") + moves
    if max(abs(chosen), abs(rejected)) < still:
        return moves
    surely, still_moves = "", min(abs(chosen), abs(rejected)) >= still
    if still_moves and chosen < 0 and rejected < 0:
        surely = "where both of a prompt fell, their mass went to its other responses"
        surely += f", in {log.both_fell:.0%} of {log.pairs:,} pairs" if log.pairs else ""
        surely += "; how much is not known, for a mean of log π over prompts is no sum of "
        surely += "probabilities"
        if log.beta:
            surely += f" (chosen is {math.exp(chosen):.2g} times as likely, in geometric mean)"
    elif still_moves and chosen > 0 and rejected > 0:
        surely = "where both of a prompt rose, their mass came from its other responses"
    elif chosen > 0 > rejected:
        surely = "as the loss asks; what responses in no pair did is not known"
    elif chosen < 0 < rejected:
        surely = "against the labels"
    return f"{moves}: {surely}" if surely else moves


def _say_start(log: Log) -> str:
    """Whether the policy starts at the reference, where the first entry can tell."""
    loss, _ = log.ends("loss")
    if log.pairs or log.part == "evaluation" or math.isnan(loss):
        return ""
    first = [log.ends(f"rewards/{x}")[0] for x in ("chosen", "rejected")]
    at_reference = max(map(abs, first)) < REWARD_STILL
    if log.steps[0] > 1:
        if abs(loss - LOG_TWO) < NEAR:
            return ""
        return (
            f"the first entry, step {log.steps[0]:g}, is a mean over the steps before it, with "
            f"loss {loss:.3g}, so it does not show whether the policy started at the reference"
        )
    if abs(loss - LOG_TWO) < NEAR and at_reference:
        return "the loss starts at log 2 = 0.693: the policy starts at the reference"
    if at_reference:
        return (
            f"the loss starts at {loss:.3g}, not log 2 = 0.693, though the rewards start at 0: it "
            "is not DPO's loss alone"
        )
    return (
        f"the loss starts at {loss:.3g} and the rewards at {first[0]:.3g} and {first[1]:.3g}, not "
        "at log 2 = 0.693 and 0: the policy does not start at the reference, or there is none"
    )


def _say_accuracy(log: Log) -> str:
    start, end = log.ends("rewards/accuracies")
    before, after = log.ends("rewards/margins")
    if math.isnan(end) or math.isnan(after):
        return ""
    if before == 0 and start == 0:
        start = 0.5  # trainers count ties as wrong, and at the reference all are ties
    if len(log.steps) > 1 and abs(end - 0.5) < 0.02:
        return f"the accuracy ends at {end:.2f}: the rewards tell chosen from rejected by chance"
    if after - before > REWARD_STILL and end - start < NEAR:
        return (
            f"the margin grew by {after - before:.2g} in reward but the accuracy did not "
            f"({start:.2f} to {end:.2f}): no more pairs are right than before"
        )
    return ""


def _say_kl(log: Log) -> str:
    """An estimate of the KL from the log-ratios, where β is known."""
    if not log.beta or log.part == "training":
        return ""  # training moves the ratios of its own pairs, which are then no fresh samples
    ends = [log.ends(f"rewards/{x}")[1] / log.beta for x in ("chosen", "rejected")]
    estimate = -sum(ends) / 2
    if not estimate > NATS_STILL:
        return ""
    return (
        f"if the pairs are samples of the reference that were not trained on, "
        f"KL(reference‖policy) is about {estimate:.2g} nats"
    )


def _say_gaps(log: Log) -> str:
    names = ("loss", "rewards/chosen", "rewards/rejected")
    bad = np.any([~np.isfinite(log.values[name]) for name in names if _given(log, name)], axis=0)
    if not np.any(bad):
        return ""
    first = log.steps[np.argmax(bad)]
    return (
        f"{int(bad.sum()):,} of {len(log.steps):,} entries are not finite, the first at step "
        f"{first:g}; start and end leave them out"
    )


def _given(log: Log, name: str) -> bool:
    return bool(np.isfinite(log.values[name]).any())


def draw_logs(logs: Sequence[Log]) -> Figure:
    """Draw the panel of a log: loss, rewards, margin, accuracy and log-probabilities over steps.

    Args:
      logs: training and evaluation of one run, or pairs.
    """
    colors = {"training": "dpo", "pairs": "dpo", "evaluation": "forward_kl"}
    curves: dict[str, list[Curve]] = {}
    for name in QUANTITIES.values():
        title = "logps, nats (rejected dashed)" if name.startswith("logps") else name
        for log in logs:
            if _given(log, name):
                color = plotting.METHOD_COLORS[colors[log.part]]
                dashes: Style = "--" if name == "logps/rejected" else "-"
                curve = Curve(log.steps, log.values[name], log.part, color, dashes)
                curves.setdefault(title, []).append(curve)
    return draw_panel(curves, log_steps=False)


def write_csv(logs: Sequence[Log], path: Path) -> None:
    """Write the entries: part, step and the quantities, with an empty cell for what is missing."""
    lines = [",".join(("part", "step", *QUANTITIES.values()))]
    for log in logs:
        for i, step in enumerate(log.steps):
            row = [log.values[name][i] for name in QUANTITIES.values()]
            cells = ["" if math.isnan(value) else f"{value:.9g}" for value in row]
            lines.append(",".join((log.part, f"{step:.12g}", *cells)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
