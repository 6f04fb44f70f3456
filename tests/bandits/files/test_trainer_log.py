"""Logs of trainers: formats and names of columns, numbers, sentences, and refusals."""

import json
import math

import numpy as np
import pytest

from bandits import plotting
from bandits.files.tables import FileWarning
from bandits.files.trainer_log import describe_log, draw_logs, read_logs, summarise_log, write_csv
from theory.checks import InvalidInput

LOG_TWO = math.log(2)


def entry(step, chosen, rejected, accuracy=0.7, prefix="", **more):
    margin = chosen - rejected
    numbers = {
        "loss": math.log1p(math.exp(-margin)),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margin,
        "rewards/accuracies": accuracy,
        "logps/chosen": -280.0 + 10 * chosen,
        "logps/rejected": -260.0 + 10 * rejected,
    } | more
    return {f"{prefix}{name}": value for name, value in numbers.items()} | {"step": step}


START = entry(1, 0.0, 0.0, 0.0)
SUMMARY = {"step": 1500, "train_runtime": 1000.0, "train_loss": 0.4, "total_flos": 0.0}
BOTH_PARTS = [
    START, entry(10, -0.1, -0.3), entry(10, -0.2, -0.3, prefix="eval_", runtime=3.0),
    entry(20, -0.26, -0.33), entry(20, -0.4, -0.5, prefix="eval_"), SUMMARY,
]  # fmt: skip


@pytest.fixture
def read(tmp_path):
    """Write a text, or entries as a trainer_state.json, and read it."""

    def do(content, beta=None):
        if isinstance(content, list):
            content = json.dumps({"best_metric": None, "global_step": 3, "log_history": content})
        (tmp_path / "log").write_text(content, encoding="utf-8")
        return read_logs(tmp_path / "log", beta)

    return do


def test_training_and_evaluation_are_told_apart_and_the_summary_is_left_out(read):
    training, evaluation = read(BOTH_PARTS)
    assert (training.part, evaluation.part) == ("training", "evaluation")
    np.testing.assert_array_equal(training.steps, [1, 10, 20])
    np.testing.assert_allclose(training.values["rewards/chosen"], [0, -0.1, -0.26])
    np.testing.assert_allclose(evaluation.values["rewards/rejected"], [-0.3, -0.5])
    rows = {row[0]: row[1:] for row in summarise_log(training)}
    assert rows["training"] == ("start (step 1)", "end", "change")
    assert rows["rewards/margins"] == ("0", "0.07", "+0.07")
    assert rows["loss"][0] == "0.6931"


ROWS = [(1, 0.0, 0.0, 0.0), (5, -0.25, -0.75, 0.5)]


@pytest.mark.parametrize(
    "names",
    [
        ("step", "rewards/chosen", "rewards/rejected", "rewards/margins"),
        ("global_step", "train/rewards/chosen", "train/rewards/rejected", "train/rewards/margins"),
        ("Step", "rewards_train/chosen", "rewards_train/rejected", "rewards_train/margins"),
        ("step", "chosen_rewards", "rejected_rewards", "margin"),
        ("step", "chosen_reward", "reject_reward", "reward_margin"),
        # A margin that is not logged is the difference; an extreme over a batch is no margin.
        ("step", "rewards/chosen", "rewards/rejected", "rewards/margins_max"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "state"])
def test_names_of_other_trainers_are_known(read, names, kind):
    records = [dict(zip(names, row, strict=True)) for row in ROWS]
    contents = {
        "csv": "\n".join(",".join(map(str, row)) for row in [names, *ROWS]),
        "jsonl": "\n".join(map(json.dumps, records)),
        "state": records,
    }
    (log,) = read(contents[kind])
    np.testing.assert_array_equal(log.steps, [1, 5])
    np.testing.assert_allclose(log.values["rewards/margins"], [0, 0.5])
    np.testing.assert_allclose(log.values["rewards/rejected"], [0, -0.75])


def test_the_end_is_the_mean_of_the_last_tenth(read):
    (log,) = read([entry(i + 1, -float(i), -2.0 * i) for i in range(40)])
    assert log.ends("rewards/chosen") == pytest.approx((0, -np.mean([36, 37, 38, 39])))
    assert summarise_log(log)[0][2] == "end (mean of 4)"


def make_pairs(count):
    """Return log-probabilities: policy and reference of chosen and rejected."""
    draw = np.random.default_rng(0)
    reference = draw.normal(-200, 30, (count, 2))
    policy = reference + draw.normal([-2.6, -3.3], 3, (count, 2))
    return np.round(np.hstack([policy, reference]), 4)


HEADER = "chosen_logps,rejected_logps,ref_chosen_logps,ref_rejected_logps"
OTHER_HEADER = (
    "policy_chosen_logps,policy_rejected_logps,reference_chosen_logps,reference_rejected_logps"
)


def as_csv(rows, header=HEADER):
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


@pytest.mark.parametrize(("beta", "used"), [(None, 0.1), (0.05, 0.05)])
@pytest.mark.parametrize("header", [HEADER, OTHER_HEADER])
def test_pairs_give_the_numbers_that_a_trainer_would_log(read, beta, used, header):
    rows = make_pairs(300)
    (log,) = read(as_csv(rows, header), beta)
    up, down = rows[:, 0] - rows[:, 2], rows[:, 1] - rows[:, 3]
    margin = used * (up - down)
    ends = {
        "loss": (LOG_TWO, np.log1p(np.exp(-margin)).mean()),
        "rewards/chosen": (0, used * up.mean()),
        "rewards/rejected": (0, used * down.mean()),
        "rewards/margins": (0, margin.mean()),
        "rewards/accuracies": (0.5, (margin > 0).mean()),
        "logps/chosen": (rows[:, 2].mean(), rows[:, 0].mean()),
        "logps/rejected": (rows[:, 3].mean(), rows[:, 1].mean()),
    }
    for name, expected in ends.items():
        assert log.ends(name) == pytest.approx(expected), name
    assert log.pairs == 300
    first, *others = describe_log(log)
    both = ((up < 0) & (down < 0)).mean()
    assert f"chosen fell by {-up.mean():.1f} nats and rejected by {-down.mean():.1f}" in first
    assert f"in {both:.0%} of 300 pairs" in first
    assert f"{math.exp(up.mean()):.2g} times as likely, in geometric mean" in first
    kl = -(up.mean() + down.mean()) / 2
    assert any(f"KL(reference‖policy) is about {kl:.2g} nats" in said for said in others)


def test_pairs_of_several_steps_are_means_of_each(read):
    rows = np.hstack([make_pairs(60), np.repeat([10.0, 20.0, 30.0], 20)[:, None]])
    (log,) = read(as_csv(rows, f"{HEADER},step"))
    np.testing.assert_array_equal(log.steps, [10, 20, 30])
    expected = 0.1 * (rows[:, 0] - rows[:, 2]).reshape(3, 20).mean(axis=1)
    np.testing.assert_allclose(log.values["rewards/chosen"], expected)
    assert log.pairs == 20


BOTH_FELL = "where both of a prompt fell, their mass went to its other responses"
NO_SUM = f"{BOTH_FELL}; how much is not known, for a mean of log π over prompts is no sum of prob"
START_WORDS = "the loss starts at log 2 = 0.693: the policy starts at the reference"


@pytest.mark.parametrize(
    ("first", "last", "beta", "said"),
    [
        (START, entry(100, -0.26, -0.33), None, "from step 1 to 100 chosen fell by 0.26 in reward"
         " (β times nats) and rejected by 0.33"),
        (START, entry(100, -0.26, -0.33), None, NO_SUM),
        (START, entry(100, -0.26, -0.33), 0.1, "from step 1 to 100 chosen fell by 2.6 nats and "
         "rejected by 3.3 while the margin grew by 0.7"),
        (START, entry(100, 0.33, 0.26), None, "where both of a prompt rose, their mass came from "
         "its other responses"),
        (START, entry(100, 0.2, -0.3), None, "what responses in no pair did is not known"),
        (START, entry(100, -0.2, 0.3), None, "against the labels"),
        (START, entry(100, 0.0, 0.0), None, "from step 1 to 100 neither chosen nor rejected moved"),
        # The start is judged where the first entry can tell.
        (START, entry(100, -9.0, -19.0), None, START_WORDS),
        (entry(1, 0.0, 0.0, loss=100.0), entry(100, -9.0, -19.0), None, "the loss starts at 100, "
         "not log 2 = 0.693, though the rewards start at 0: it is not DPO's loss"),
        (entry(1, -4.5, -8.9), entry(100, -9.0, -19.0), None, "and the rewards at -4.5 and -8.9, "
         "not at log 2 = 0.693 and 0: the policy does not start at the reference, or there is "),
        (entry(50, -0.5, -0.9), entry(100, -9.0, -19.0), None, "the first entry, step 50, is a "
         "mean over the steps before it, with loss 0.513, so it does not show whether the policy"),
        # An accuracy that is stuck.
        (START, entry(100, 0.1, -0.2, 0.51), None, "tell chosen from rejected by chance"),
        (entry(1, 0.0, 0.0, 0.62), entry(100, 0.1, -0.2, 0.62), None, "the margin grew by 0.3 in "
         "reward but the accuracy did not (0.62 to 0.62)"),
    ],
)  # fmt: skip
def test_the_sentences_say_what_follows_for_sure(read, first, last, beta, said):
    (log,) = read([first, last], beta)
    assert any(said in sentence for sentence in describe_log(log))


def test_what_does_not_follow_is_not_said(read):
    (log,) = read([START, entry(100, 0.1, -0.2, 0.7)], beta=0.1)
    said = " ".join(describe_log(log))
    assert not any(word in said for word in ("accuracy", "KL", "not finite"))


def test_of_steps_that_a_resumed_run_logs_again_the_last_count(read):
    entries = [entry(s, -0.1 * s, -0.2 * s) for s in (1, 2, 3)]
    with pytest.warns(FileWarning, match="2 entries of training repeat a step"):
        (log,) = read([*entries, entry(2, -5.0, -6.0), entry(3, -7.0, -8.0)])
    assert log.steps.tolist() == [1, 2, 3]
    assert log.values["rewards/chosen"].tolist() == [-0.1, -5.0, -7.0]


def test_decimal_commas_are_read(read):
    (log,) = read(HEADER.replace(",", ";") + "\n-40,5;-52,1;-38,2;-45,3\n")
    assert log.values["logps/chosen"].tolist() == [-38.2, -40.5]


def test_gaps_are_counted_and_left_out(read):
    history = [START, entry(10, math.nan, math.nan), entry(20, -0.2, -0.4, loss=math.nan)]
    (log,) = read([*history, entry(30, -0.2, -0.4)])
    gaps = "2 of 4 entries are not finite, the first at step 10"
    assert any(gaps in sentence for sentence in describe_log(log))
    assert log.ends("rewards/chosen") == (0.0, -0.2)
    (lost,) = read([entry(1, math.nan, math.nan)])
    assert "no entry has finite rewards" in describe_log(lost)[0]
    assert draw_logs([lost]).axes  # without a line, and without an error


def state(entries):
    return json.dumps({"log_history": entries})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"log_history": [', "line 1: it is not JSON"),
        ('{"global_step": 3, "best": 1}', "no list log_history; found global_step, best"),
        (state([]), "has an empty log_history: nothing was logged"),
        (state([SUMMARY]), "has an empty log_history: nothing was logged"),
        (state([3]), "log_history entry 1: it is no object"),
        (state([START, 3]), "log_history entry 2: it is no object"),
        (state([{"loss": 1, "epoch": 2}]),
         "no rewards/chosen and no rewards/rejected; found loss, epoch"),
        (state([{"rewards/chosen": None, "rewards/rejected": 1}]),
         "no entry with both rewards/chosen and rewards/rejected; found rewards/chosen, "),
        (state([{"rewards/chosen": "x", "rewards/rejected": 0}]),
         "log_history entry 1: 'x' is not a number"),
        (state([{"rewards/chosen": True, "rewards/rejected": 0}]), "'True' is not a number"),
        (state([START, {"rewards/chosen": 1, "rewards/rejected": 0}]),
         "log_history entry 2: it has no step"),
        ("", "is empty"),
        (HEADER + "\n", "holds no entries below its header"),
        (HEADER + "\n-1,-2,-3,-4\n-1,,-3,-4\n", "line 3: rejected_logps is ''"),
        (HEADER + "\n40,-2,-3,-4\n", "chosen_logps is '40'; a log-probability is a number <= 0"),
        ("step," + HEADER + "\n1,-1,-2,-3,-4\n,-1,-2,-3,-4\n", "line 3: it has no step"),
        ("step,rewards/chosen\n1,2\n", "no rewards/rejected; found step"),
        (HEADER.replace("rejected", "rejectd", 1) + "\n1,2,3,4\n",
         "no rejected_logps; did you mean 'rejectd_logps'?; found"),
        (HEADER + "\n-1,-2,-3,-4\n-1,foo,-3,-4\n", "line 3: 'foo' is not a number"),
        ("\0\1", "not text in UTF-8"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(read, text, message):
    with pytest.raises(InvalidInput) as refused:
        read(text)
    assert message in str(refused.value)


def test_what_is_no_file_no_table_or_no_beta_is_refused(read, tmp_path):
    with pytest.raises(InvalidInput, match="cannot read"):
        read_logs(tmp_path / "none.json")
    np.save(tmp_path / "array.npy", np.ones(3))
    with pytest.raises(
        InvalidInput, match="is an array; give a trainer's log, or a table of pairs"
    ):
        read_logs(tmp_path / "array.npy")
    with pytest.raises(InvalidInput, match="beta is 0"):
        read([START], beta=0.0)


def test_the_figure_has_the_panels_and_a_line_a_part(read):
    figure = draw_logs(read(BOTH_PARTS))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
        "logps, nats (rejected dashed)",
    ]  # fmt: skip
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training", "evaluation"]
    assert [len(figure.axes[i].lines) for i in (0, -1)] == [2, 4]
    assert max(plotting.overflow(figure)) <= 0


def test_the_table_of_entries_can_be_read_back(read, tmp_path):
    write_csv(read([START, entry(10, -0.125, -0.25, loss=math.nan)]), tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0].startswith("part,step,loss,rewards/chosen")
    assert lines[2] == "training,10,,-0.125,-0.25,0.125,0.7,-281.25,-262.5"
    (again,) = read_logs(tmp_path / "out.csv")
    np.testing.assert_allclose(again.values["rewards/chosen"], [0, -0.125])
