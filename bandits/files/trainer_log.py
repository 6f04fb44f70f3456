"""Read the log of a preference trainer, and say what follows of chosen, rejected and their mass.

A log is a ``trainer_state.json``, a table with the same columns, or a table of log-probabilities,
one pair a row. The names of columns vary between trainers and versions: ``rewards/chosen``,
``eval_rewards/chosen``, ``train/rewards/chosen`` and ``rewards_train/chosen`` are one quantity.

A reward is β log π(y)/π_ref(y). For one prompt, if both responses of a pair become less likely,
the rest of the responses have gained exactly what the two lost. Means over prompts keep only the
direction: a mean of log-probabilities is no sum of probabilities.
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from bandits import plotting
from bandits.files.tables import Table, listed, read_content, read_tables, read_values
from bandits.training_panel import Curve, Style, draw_panel, say_changes
from theory import checks

DEFAULT_BETA = 0.1
"""The β of trainers by default; a log does not hold it."""

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

QUANTITIES = (
    "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
    "logps/chosen", "logps/rejected",
)  # fmt: skip
"""What is read of an entry."""

REWARDS = ("rewards/chosen", "rewards/rejected")
"""What an entry must hold."""

ALIASES = {"margin": "rewards/margins", "accuracy": "rewards/accuracies", "global_step": "step"}

LOG_PROBS = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
"""The columns of a table of pairs."""

Columns = Mapping[frozenset[str], int]
"""The place of each column by the words of its name, see `_words`."""


@dataclass(frozen=True)
class Log:
    """One course of training, or of evaluation.

    Attributes:
      part: "training", "evaluation" or "pairs".
      values: a row an entry, indexed by gradient step, and a column for each of `QUANTITIES`; NaN
        where an entry lacks it.
      beta: β of the rewards, or None where it is not known.
      pairs: number of pairs at the last step, of a table of pairs.
      both_fell: share of them whose responses are both less likely than under the reference.
    """

    part: str
    values: pd.DataFrame
    beta: float | None
    pairs: int = 0
    both_fell: float = 0.0

    @property
    def steps(self) -> np.ndarray:
        """Return the gradient steps ``[n]``."""
        return self.values.index.to_numpy()

    @property
    def last(self) -> int:
        """Return how many entries the end is a mean of."""
        return 1 if self.pairs else max(1, int(LAST_SHARE * len(self.values)))

    def finite(self, name: str) -> np.ndarray:
        """Return the finite values of a quantity."""
        values = self.values[name].to_numpy()
        return values[np.isfinite(values)]

    def ends(self, name: str) -> tuple[float, float]:
        """Return the first finite value, and the mean of the last tenth of the finite ones."""
        finite = self.finite(name)
        if not finite.size:
            return math.nan, math.nan
        return float(finite[0]), float(finite[-self.last :].mean())

    def change(self, name: str) -> float:
        """Return the end minus the start."""
        start, end = self.ends(name)
        return end - start


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
    for alias, name in ALIASES.items():
        if _words(alias) in columns:
            columns.setdefault(_words(name), columns[_words(alias)])
    if columns.keys() >= set(map(_words, LOG_PROBS)):
        return [_from_pairs(table, columns, DEFAULT_BETA if beta is None else beta)]
    logs = []
    for part, prefix in (("training", ""), ("evaluation", "eval_")):
        if columns.keys() >= {_words(prefix + name) for name in REWARDS}:
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
    table = read_tables(path, content)[0]
    one_record = table.unit == "record" and len(table.rows) == 1
    if one_record and {"log_history", "global_step"} & set(table.header or ()):
        return _from_state(table)
    table = table.settle(
        lambda cells: any(re.search(r"[A-Za-z]{3}", str(cell)) for cell in cells), lambda _: False
    )
    if not table.rows:
        raise checks.InvalidInput(f"{path} holds no entries below its header")
    return table


def _from_state(state: Table) -> Table:
    """Return the entries of ``log_history``, without the summary at its end."""
    names = state.first()
    history = dict(zip(names, state.rows[0], strict=True)).get("log_history")
    if not isinstance(history, list):
        raise checks.InvalidInput(f"{state.source} has no list log_history; found {listed(names)}")
    entries = {
        i: entry for i, entry in enumerate(history, 1)
        if not isinstance(entry, dict) or "train_runtime" not in entry
    }  # fmt: skip
    if not entries:
        raise checks.InvalidInput(f"{state.source} has an empty log_history: nothing was logged")
    table = read_values(state.source, [*entries.values()], [*entries], "log_history entry")
    if table.header is None:
        table.refuse(0, "it is no object")
    return table


def _words(name: Any) -> frozenset[str]:
    """Return the words of a column's name, without those that say nothing."""
    text = re.sub(r"log_?probs?", "logp", str(name).lower())
    words = (WORDS.get(word, word) for word in re.split(r"[^a-z0-9]+", text))
    return frozenset(words) - IGNORED


def _refuse_columns(table: Table, columns: Columns) -> None:
    names = [str(name) for name in table.first()]
    wanted = [name for name in LOG_PROBS if _words(name) not in columns]
    if len(wanted) > 2:
        found = {words - {"eval"} for words in columns}
        wanted = [name for name in REWARDS if _words(name) not in found]
    known = set(map(_words, QUANTITIES + LOG_PROBS))
    others = [name for name in names if _words(name) - {"eval"} not in known]
    near = [close for name in wanted for close in difflib.get_close_matches(name, others, 1)]
    hint = f"; did you mean {' and '.join(map(repr, dict.fromkeys(near)))}?" if near else ""
    lacks = " and no ".join(wanted) or "entry with both rewards/chosen and rewards/rejected"
    raise checks.InvalidInput(f"{table.source} has no {lacks}{hint}; found {listed(names)}")


def _column(table: Table, column: int | None) -> np.ndarray:
    """Return numbers; NaN for what is missing and for what the trainer wrote as NaN."""
    if column is None:
        return np.full(len(table.rows), np.nan)
    cells = [row[column] for row in table.rows]
    if any(isinstance(cell, str) and "," in cell for cell in cells):
        return table.numbers(column)  # which knows decimal commas
    numbers = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        try:
            numbers[i] = math.nan if cell in (None, "") else float(str(cell))
        except ValueError:
            table.refuse(i, f"{str(cell)[:40]!r} is not a number")
    return numbers


def _steps(table: Table, columns: Columns, otherwise: np.ndarray) -> np.ndarray:
    """Return the steps of the entries, or ``otherwise`` where none has one."""
    steps = _column(table, columns.get(_words("step")))
    missing = np.flatnonzero(np.isnan(steps))
    if len(missing) == len(steps):
        return otherwise
    for i in missing[:1]:
        table.refuse(i, "it has no step, as others have; add it, or leave the entry out")
    return steps


def _from_entries(
    table: Table, columns: Columns, part: str, prefix: str, beta: float | None
) -> list[Log]:
    """Return the log of a part, or nothing if no entry is of that part."""
    chosen = columns[_words(prefix + "rewards/chosen")]
    own = [i for i, row in enumerate(table.rows) if row[chosen] not in (None, "")]
    if not own:
        return []
    rows, places = zip(*((table.rows[i], table.places[i]) for i in own), strict=True)
    table = replace(table, rows=rows, places=places)
    values = pd.DataFrame(
        {name: _column(table, columns.get(_words(prefix + name))) for name in QUANTITIES}
    )
    margins = values["rewards/chosen"] - values["rewards/rejected"]
    values["rewards/margins"] = values["rewards/margins"].fillna(margins)
    values.index = pd.Index(_steps(table, columns, np.arange(1.0, len(own) + 1)))
    # A run that was resumed logs some steps again; what came last is what it went on with.
    repeated = values.index.duplicated(keep="last")
    if repeated.any():
        table.say(
            f"{repeated.sum()} entries of {part} repeat a step, as after a resume; the last one of "
            "each step is taken"
        )
    return [Log(part, values[~repeated].sort_index(), beta)]


def _from_pairs(table: Table, columns: Columns, beta: float) -> Log:
    """Return means over the pairs of each step; without steps, the reference comes first."""
    places = [columns[_words(name)] for name in LOG_PROBS]
    log_probs = [_column(table, column) for column in places]
    for column, log_prob in zip(places, log_probs, strict=True):
        for i in np.flatnonzero(~(log_prob <= 0))[:1]:
            given = f"{table.first()[column]} is {str(table.rows[i][column])!r}"
            why = "a log-probability is a number <= 0; give log π, not −log π"
            table.refuse(i, f"{given}; {why}")
    chosen, rejected, ref_chosen, ref_rejected = log_probs
    steps = _steps(table, columns, np.ones(len(table.rows)))
    up, down = chosen - ref_chosen, rejected - ref_rejected
    values = _means(steps, beta * up, beta * down, chosen, rejected)
    if _words("step") not in columns:
        start = _means(0 * steps, 0 * up, 0 * down, ref_chosen, ref_rejected)
        values = pd.concat([start, values])
    last = steps == steps.max()
    fell = float(np.mean((up[last] < 0) & (down[last] < 0)))
    return Log("pairs", values, beta, int(last.sum()), fell)


def _means(
    steps: np.ndarray, up: np.ndarray, down: np.ndarray, chosen: np.ndarray, rejected: np.ndarray
) -> pd.DataFrame:
    """Return the means of each step, from the rewards and the log-probabilities of its pairs."""
    margin = up - down
    loss, accuracy = np.logaddexp(0.0, -margin), (margin > 0) + 0.5 * (margin == 0)
    values = (loss, up, down, margin, accuracy, chosen, rejected)
    pairs = pd.DataFrame(dict(zip(QUANTITIES, values, strict=True)), index=steps)
    return pairs.groupby(level=0).apply(lambda pairs: pairs.mean(skipna=False))


def summarise_log(log: Log) -> list[tuple[str, ...]]:
    """Return the rows quantity, start, end and change, under their names."""
    last = f"end (mean of {log.last})" if log.last > 1 else "end"
    rows: list[tuple[str, ...]] = [(log.part, f"start (step {log.steps[0]:g})", last, "change")]
    for name in QUANTITIES:
        start, end = log.ends(name)
        if not math.isnan(end):
            rows.append((name, f"{start:.4g}", f"{end:.4g}", f"{end - start:+.3g}"))
    return rows


def describe_log(log: Log) -> list[str]:
    """Return sentences that read the log: what moved, what follows, and what is amiss."""
    said = [_say_moves(log), _say_start(log), _say_accuracy(log), _say_kl(log), _say_gaps(log)]
    return [f"{log.part}: {sentence}." for sentence in said if sentence]


def _say_moves(log: Log) -> str:
    """Return what moved, and what follows for the mass of the other responses."""
    scale = log.beta or 1.0
    unit, still = (" nats", NATS_STILL) if log.beta else (" in reward (β times nats)", REWARD_STILL)
    chosen, rejected, margin = (log.change(name) / scale for name in (*REWARDS, "rewards/margins"))
    if math.isnan(chosen) or math.isnan(rejected):
        return "no entry has finite rewards of chosen and rejected"
    moves = say_changes(chosen, rejected, margin, unit, still)
    if len(log.steps) > 1 and not log.pairs:
        moves = f"from step {log.steps[0]:,.0f} to {log.steps[-1]:,.0f} {moves}"
    if max(abs(chosen), abs(rejected)) < still:
        return moves
    if max(chosen, rejected) <= -still:
        share = f", in {log.both_fell:.0%} of {log.pairs:,} pairs" if log.pairs else ""
        moves += (
            f": where both of a prompt fell, their mass went to its other responses{share}; how "
            "much is not known, for a mean of log π over prompts is no sum of probabilities"
        )
        likely = f"chosen is {math.exp(chosen):.2g} times as likely, in geometric mean"
        return f"{moves} ({likely})" if log.beta else moves
    if min(chosen, rejected) >= still:
        return f"{moves}: where both of a prompt rose, their mass came from its other responses"
    if chosen > 0 > rejected:
        return f"{moves}: as the loss asks; what responses in no pair did is not known"
    return f"{moves}: against the labels" if chosen < 0 < rejected else moves


def _say_start(log: Log) -> str:
    """Return whether the policy starts at the reference, where the first entry can tell."""
    loss, chosen, rejected = (log.ends(name)[0] for name in ("loss", *REWARDS))
    if log.part != "training" or math.isnan(loss):
        return ""
    is_log_two = abs(loss - LOG_TWO) < NEAR
    at_reference = max(abs(chosen), abs(rejected)) < REWARD_STILL
    if log.steps[0] > 1:
        first = f"the first entry, step {log.steps[0]:g}, is a mean over the steps before it, with "
        why = "so it does not show whether the policy started at the reference"
        return "" if is_log_two else f"{first}loss {loss:.3g}, {why}"
    if is_log_two and at_reference:
        return "the loss starts at log 2 = 0.693: the policy starts at the reference"
    if at_reference:
        why = "though the rewards start at 0: it is not DPO's loss alone"
        return f"the loss starts at {loss:.3g}, not log 2 = 0.693, {why}"
    return (
        f"the loss starts at {loss:.3g} and the rewards at {chosen:.3g} and {rejected:.3g}, not "
        "at log 2 = 0.693 and 0: the policy does not start at the reference, or there is none"
    )


def _say_accuracy(log: Log) -> str:
    """Return whether the accuracy is stuck, at a half or while the margin grows."""
    start, end = log.ends("rewards/accuracies")
    grew = log.change("rewards/margins")
    if math.isnan(end) or math.isnan(grew):
        return ""
    if log.ends("rewards/margins")[0] == start == 0:
        start = 0.5  # trainers count ties as wrong, and at the reference all are ties
    if len(log.steps) > 1 and abs(end - 0.5) < 0.02:
        return f"the accuracy ends at {end:.2f}: the rewards tell chosen from rejected by chance"
    if grew > REWARD_STILL and end - start < NEAR:
        stuck = (
            f"the accuracy did not ({start:.2f} to {end:.2f}): no more pairs are right than before"
        )
        return f"the margin grew by {grew:.2g} in reward but {stuck}"
    return ""


def _say_kl(log: Log) -> str:
    """Return an estimate of the KL from the log-ratios, where β is known."""
    if not log.beta or log.part == "training":
        return ""  # training moves the ratios of its own pairs, which are then no fresh samples
    estimate = -sum(log.ends(name)[1] for name in REWARDS) / (2 * log.beta)
    samples = "if the pairs are samples of the reference that were not trained on"
    kl = f"{samples}, KL(reference‖policy) is about {estimate:.2g} nats"
    return kl if estimate > NATS_STILL else ""


def _say_gaps(log: Log) -> str:
    """Return how many entries are not finite in what was logged."""
    given = [name for name in ("loss", *REWARDS) if log.finite(name).size]
    bad = ~np.isfinite(log.values[given].to_numpy()).all(axis=1)
    if not bad.any():
        return ""
    return (
        f"{bad.sum():,} of {len(bad):,} entries are not finite, the first at step "
        f"{log.steps[bad][0]:g}; start and end leave them out"
    )


def draw_logs(logs: Sequence[Log]) -> Figure:
    """Draw the panel of a log: loss, rewards, margin, accuracy and log-probabilities over steps.

    Args:
      logs: training and evaluation of one run, or pairs.
    """
    curves: dict[str, list[Curve]] = {}
    for name in QUANTITIES:
        title = "logps, nats (rejected dashed)" if name.startswith("logps") else name
        dashes: Style = "--" if name == "logps/rejected" else "-"
        for log in logs:
            if log.finite(name).size:
                method = "forward_kl" if log.part == "evaluation" else "dpo"
                color = plotting.METHOD_COLORS[method]
                curve = Curve(log.steps, log.values[name].to_numpy(), log.part, color, dashes)
                curves.setdefault(title, []).append(curve)
    return draw_panel(curves, log_steps=False)


def write_csv(logs: Sequence[Log], path: Path) -> None:
    """Write the entries: part, step and the quantities, with an empty cell for what is missing."""
    table = pd.concat({log.part: log.values for log in logs}, names=["part", "step"]).reset_index()
    table["step"] = table["step"].map("{:.12g}".format)
    table.to_csv(path, index=False, float_format="%.9g")
