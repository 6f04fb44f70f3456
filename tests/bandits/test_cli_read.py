"""`modeseek read` end to end: what it prints and writes, and what it refuses, leaving nothing."""

import json
import sys

import matplotlib.image
import pytest

from bandits import cli

HISTORY = [
    {"step": 1, "loss": 0.6931, "rewards/chosen": 0.0, "rewards/rejected": 0.0},
    {"step": 100, "loss": 0.66, "rewards/chosen": -0.26, "rewards/rejected": -0.33},
    {"step": 100, "train_runtime": 1.0, "train_loss": 0.7},
]


@pytest.fixture
def command(monkeypatch, capfd, tmp_path):
    """Run the command in a folder of its own; returns its exit code, stdout and stderr."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cli.console, "width", 200)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    (work / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY}))
    (work / "bad.json").write_text('{"log_history": [')
    (work / "file").write_text("")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["modeseek", "read", *arguments])
        monkeypatch.setenv("XLA_FLAGS", "")
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code, *capfd.readouterr())

    return run


def test_a_log_is_read_into_a_table_a_sentence_and_files(command, tmp_path):
    code, out, error = command("trainer_state.json", "--out", "read", "--beta", "0.1")
    assert (code, error) == (0, "")
    assert "chosen fell by 2.6 nats and rejected by 3.3 while the margin grew by 0.7" in out
    assert "the policy starts at the reference" in out
    assert "rewards/margins" in out
    folder = tmp_path / "work" / "read"
    assert {path.name for path in folder.iterdir()} == {
        "training.png", "training.pdf", "training.csv",
    }  # fmt: skip
    assert matplotlib.image.imread(folder / "training.png").shape[1] > 1500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bad.json", "--out", "read"), "it is not JSON"),
        (("none.json", "--out", "read"), "cannot read none.json"),
        (("trainer_state.json", "--out", "read", "--beta", "-1"), "beta is -1"),
        (("none.json", "--out", "file"), "cannot write file"),
    ],
)
def test_bad_input_ends_with_2_and_leaves_nothing(command, tmp_path, arguments, message):
    before = sorted(tmp_path.rglob("*"))
    code, out, error = command(*arguments)
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
