"""Logs of trainers: formats and names of columns, numbers, sentences, and refusals."""

import json
import math

import numpy as np
import pytest

from bandits import plotting
from bandits.tables import FileWarning
from bandits.trainer_log import describe_log, draw_logs, read_logs, summarise_log, write_csv
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


@pytest.fixture
def read(tmp_path):
    """Write a text, or entries as a trainer_state.json, and read it."""

    def do(content, name="trainer_state.json", beta=None):
        if isinstance(content, list):
            state = {"best_metric": None, "global_step": 3, "log_history": content}
            content = json.dumps(state)
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return read_logs(path, beta)

    return do


def test_training_and_evaluation_are_told_apart_and_the_summary_is_left_out(read):
    history = [
        START, entry(10, -0.1, -0.3), entry(10, -0.2, -0.3, prefix="eval_", runtime=3.0),
        entry(20, -0.26, -0.33), entry(20, -0.4, -0.5, prefix="eval_"), SUMMARY,
    ]  # fmt: skip
    training, evaluation = read(history)
    assert (training.part, evaluation.part) == ("training", "evaluation")
    np.testing.assert_array_equal(training.steps, [1, 10, 20])
    np.testing.assert_allclose(training.values["rewards/chosen"], [0, -0.1, -0.26])
    np.testing.assert_allclose(evaluation.values["rewards/rejected"], [-0.3, -0.5])
    rows = {row[0]: row[1:] for row in summarise_log(training)}
    assert rows["training"] == ("start (step 1)", "end", "change")
    assert rows["rewards/margins"] == ("0", "0.07", "+0.07")
    assert rows["loss"][0] == "0.6931"


@pytest.mark.parametrize(
    "names",
    [
        ("step", "rewards/chosen", "rewards/rejected", "rewards/margins"),
        ("global_step", "train/rewards/chosen", "train/rewards/rejected", "train/rewards/margins"),
        ("Step", "rewards_train/chosen", "rewards_train/rejected", "rewards_train/margins"),
        ("step", "chosen_rewards", "rejected_rewards", "margin"),
        ("step", "chosen_reward", "reject_reward", "reward_margin"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_names_of_other_trainers_are_known(read, names, kind):
    rows = [(1, 0.0, 0.0, 0.0), (5, -0.25, -0.75, 0.5)]
    if kind == "csv":
        text = "\n".join(",".join(map(str, row)) for row in [names, *rows])
    else:
        text = "\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows)
    (log,) = read(text, f"log.{kind}")
    np.testing.assert_array_equal(log.steps, [1, 5])
    np.testing.assert_allclose(log.values["rewards/margins"], [0, 0.5])
    np.testing.assert_allclose(log.values["rewards/rejected"], [0, -0.75])


def test_a_margin_that_is_not_logged_is_the_difference(read):
    (log,) = read("step,rewards/chosen,rewards/rejected\n1,0.5,0.25\n", "log.csv")
    np.testing.assert_allclose(log.values["rewards/margins"], [0.25])


def test_extremes_over_a_batch_are_not_taken_for_means(read):
    (log,) = read([entry(1, 0.0, 0.0) | {"rewards/margins_max": 9.0, "rewards/margins_std": 8.0}])
    np.testing.assert_allclose(log.values["rewards/margins"], [0])


def test_the_end_is_the_mean_of_the_last_tenth(read):
    (log,) = read([entry(i + 1, -float(i), -2.0 * i) for i in range(40)])
    assert log.ends("rewards/chosen") == pytest.approx((0, -np.mean([36, 37, 38, 39])))
    assert summarise_log(log)[0][2] == "end (mean of 4)"


def pairs_of(count, steps=None):
    """Log-probabilities: policy and reference of chosen and rejected."""
    draw = np.random.default_rng(0)
    reference = draw.normal(-200, 30, (count, 2))
    policy = reference + draw.normal([-2.6, -3.3], 3, (count, 2))
    rows = np.round(np.hstack([policy, reference]), 4)
    return rows if steps is None else np.hstack([rows, steps[:, None]])


HEADER = "chosen_logps,rejected_logps,ref_chosen_logps,ref_rejected_logps"


def as_csv(rows, header=HEADER):
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


@pytest.mark.parametrize(("beta", "used"), [(None, 0.1), (0.05, 0.05)])
def test_pairs_give_the_numbers_that_a_trainer_would_log(read, beta, used):
    rows = pairs_of(300)
    (log,) = read(as_csv(rows), "pairs.csv", beta)
    up, down = rows[:, 0] - rows[:, 2], rows[:, 1] - rows[:, 3]
    margin = used * (up - down)
    expected = {
        "loss": np.log1p(np.exp(-margin)).mean(),
        "rewards/chosen": used * up.mean(),
        "rewards/rejected": used * down.mean(),
        "rewards/margins": margin.mean(),
        "rewards/accuracies": (margin > 0).mean(),
        "logps/chosen": rows[:, 0].mean(),
    }
    for name, value in expected.items():
        assert log.ends(name)[1] == pytest.approx(value), name
    assert log.ends("loss")[0] == pytest.approx(LOG_TWO)
    assert log.ends("rewards/accuracies")[0] == 0.5
    assert log.ends("logps/rejected")[0] == pytest.approx(rows[:, 3].mean())
    first, *others = describe_log(log)
    both = ((up < 0) & (down < 0)).mean()
    assert f"chosen fell by {-up.mean():.1f} nats and rejected by {-down.mean():.1f}" in first
    assert f"in {both:.0%} of 300 pairs" in first
    assert f"{math.exp(up.mean()):.2g} times as likely, in geometric mean" in first
    kl = -(up.mean() + down.mean()) / 2
    assert any(f"KL(reference‖policy) is about {kl:.2g} nats" in said for said in others)


def test_pairs_of_several_steps_are_means_of_each(read):
    rows = pairs_of(60, np.repeat([10.0, 20.0, 30.0], 20))
    (log,) = read(as_csv(rows, f"{HEADER},step"), "pairs.csv")
    np.testing.assert_array_equal(log.steps, [10, 20, 30])
    expected = 0.1 * (rows[:, 0] - rows[:, 2]).reshape(3, 20).mean(axis=1)
    np.testing.assert_allclose(log.values["rewards/chosen"], expected)
    assert log.pairs == 20


def test_other_names_of_log_probabilities_are_known(read):
    names = ("policy_chosen_logps", "policy_rejected_logps",
             "reference_chosen_logps", "reference_rejected_logps")  # fmt: skip
    rows = pairs_of(10)
    text = "\n".join(json.dumps(dict(zip(names, map(float, row), strict=True))) for row in rows)
    (log,) = read(text, "pairs.jsonl")
    assert log.pairs == 10


@pytest.mark.parametrize(
    ("chosen", "rejected", "said"),
    [
        (-0.26, -0.33, "where both of a prompt fell, their mass went to its other responses"),
        (0.33, 0.26, "where both of a prompt rose, their mass came from its other responses"),
        (0.2, -0.3, "what responses in no pair did is not known"),
        (-0.2, 0.3, "against the labels"),
        (0.0, 0.0, "neither chosen nor rejected moved"),
    ],
)
def test_the_sentence_says_what_follows_for_sure(read, chosen, rejected, said):
    (log,) = read([START, entry(100, chosen, rejected)])
    first = describe_log(log)[0]
    assert said in first
    assert first.startswith("training: from step 1 to 100 ")
    if chosen and rejected < chosen < 0:
        assert "no sum of probabilities" in first
        assert "in reward (β times nats)" in first


def test_nats_need_a_beta(read):
    history = [START, entry(100, -0.26, -0.33)]
    (log,) = read(history, beta=0.1)
    assert (
        "chosen fell by 2.6 nats and rejected by 3.3 while the margin grew by 0.7"
        in (describe_log(log)[0])
    )
    with pytest.raises(InvalidInput, match="beta is 0"):
        read(history, beta=0.0)


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (START, "the loss starts at log 2 = 0.693: the policy starts at the reference"),
        (entry(1, 0.0, 0.0, loss=100.0), "though the rewards start at 0: it is not DPO's loss"),
        (entry(1, -4.5, -8.9), "does not start at the reference, or there is none"),
        (entry(50, -0.5, -0.9), "does not show whether the policy started at the reference"),
    ],
)
def test_the_start_is_judged_where_the_first_entry_can_tell(read, first, said):
    (log,) = read([first, entry(100, -9.0, -19.0)])
    assert any(said in sentence for sentence in describe_log(log))


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ((0.0, 0.51), "tell chosen from rejected by chance"),
        ((0.62, 0.62), "the margin grew by 0.3 in reward but the accuracy did not (0.62 to 0.62)"),
        ((0.0, 0.7), None),
    ],
)
def test_an_accuracy_that_is_stuck_is_said(read, accuracies, said):
    start = entry(1, 0.0, 0.0, accuracies[0])
    (log,) = read([start, entry(100, 0.1, -0.2, accuracies[1])])
    about = [sentence for sentence in describe_log(log) if "accuracy" in sentence]
    assert len(about) == (said is not None)
    assert said is None or said in about[0]


def test_of_steps_that_a_resumed_run_logs_again_the_last_count(read):
    entries = [entry(s, -0.1 * s, -0.2 * s) for s in (1, 2, 3)]
    with pytest.warns(FileWarning, match="2 entries of training repeat a step"):
        (log,) = read([*entries, entry(2, -5.0, -6.0), entry(3, -7.0, -8.0)])
    assert log.steps.tolist() == [1, 2, 3]
    assert log.values["rewards/chosen"].tolist() == [-0.1, -5.0, -7.0]
    nameless = {k: v for k, v in entries[1].items() if k != "step"}
    with pytest.raises(InvalidInput, match="log_history entry 2: it has no step"):
        read([entries[0], nameless, entries[2]])


def test_decimal_commas_are_read(read):
    text = HEADER.replace(",", ";") + "\n-40,5;-52,1;-38,2;-45,3\n"
    (log,) = read(text, "a.csv")
    assert log.values["logps/chosen"].tolist() == [-38.2, -40.5]


def test_gaps_are_counted_and_left_out(read):
    history = [START, entry(10, math.nan, math.nan), entry(20, -0.2, -0.4, loss=math.nan)]
    (log,) = read([*history, entry(30, -0.2, -0.4)])
    assert any(
        "2 of 4 entries are not finite, the first at step 10" in s for s in describe_log(log)
    )
    assert log.ends("rewards/chosen") == (0.0, -0.2)
    (lost,) = read([entry(1, math.nan, math.nan)])
    assert "no entry has finite rewards" in describe_log(lost)[0]
    assert draw_logs([lost]).axes  # without a line, and without an error


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"log_history": [', "line 1: it is not JSON"),
        ("a.json", '{"global_step": 3, "best": 1}', "no list log_history; found global_step, best"),
        ("a.json", '{"log_history": []}', "empty log_history"),
        ("a.json", '{"log_history": [3]}', "log_history entry 1: it is no object"),
        ("a.json", '{"log_history": [{"loss": 1, "epoch": 2}]}',
         "no rewards/chosen and no rewards/rejected; found loss, epoch"),
        ("a.json", '{"log_history": [{"rewards/chosen": "x", "rewards/rejected": 0}]}',
         "log_history entry 1: 'x' is not a number"),
        ("a.json", '{"log_history": [{"rewards/chosen": true, "rewards/rejected": 0}]}',
         "'True' is not a number"),
        ("a.csv", "", "is empty"),
        ("a.csv", HEADER + "\n", "holds no entries below its header"),
        ("a.csv", HEADER + "\n-1,-2,-3,-4\n-1,,-3,-4\n", "line 3: rejected_logps is ''"),
        ("a.csv", HEADER + "\n40,-2,-3,-4\n", "chosen_logps is '40'; .* a number <= 0"),
        ("a.csv", "step," + HEADER + "\n1,-1,-2,-3,-4\n,-1,-2,-3,-4\n", "line 3: it has no step"),
        ("a.csv", "step,rewards/chosen\n1,2\n", "no rewards/rejected; found step"),
        ("a.csv", HEADER.replace("rejected_logps", "rejectd_logps", 1) + "\n1,2,3,4\n",
         "no rejected_logps; did you mean 'rejectd_logps'\\?; found"),
        ("a.csv", HEADER + "\n-1,-2,-3,-4\n-1,foo,-3,-4\n", "line 3: 'foo' is not a number"),
        ("a.csv", "\0\1", "not text in UTF-8"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_a_sentence(read, name, text, message):
    with pytest.raises(InvalidInput, match=message):
        read(text, name)


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="cannot read"):
        read_logs(tmp_path / "none.json")


def test_the_figure_has_the_panels_and_a_line_a_part(read):
    logs = read([START, entry(10, -0.1, -0.3), entry(10, -0.2, -0.3, prefix="eval_"), SUMMARY])
    figure = draw_logs(logs)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [
        "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
        "logps, nats (rejected dashed)",
    ]  # fmt: skip
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["training", "evaluation"]
    assert len(figure.axes[0].lines) == 2
    assert len(figure.axes[-1].lines) == 4
    assert max(plotting.overflow(figure)) <= 0


def test_the_table_of_entries_can_be_read_back(read, tmp_path):
    logs = read([START, entry(10, -0.125, -0.25, loss=math.nan)])
    write_csv(logs, tmp_path / "out.csv")
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0].startswith("part,step,loss,rewards/chosen")
    assert lines[2] == "training,10,,-0.125,-0.25,0.125,0.7,-281.25,-262.5"
    (again,) = read_logs(tmp_path / "out.csv")
    np.testing.assert_allclose(again.values["rewards/chosen"], [0, -0.125])
