"""`modeseek bench` prints what was measured, as a table or as JSON."""

import json
import sys

import pytest

from bandits import bench, cli
from bandits.bench import Measurement

ROWS = [
    Measurement("fast enough", 1.25, "×", "<= 1.5", 1.0, 1.4, "beside one exp"),
    Measurement("too slow", 2.0, "×", "<= 1.5"),
    Measurement("a cost", 3.0, "ns a sample"),
    Measurement("not here", None, "×", ">= 3", note="PyTorch is not installed"),
]


@pytest.fixture
def run(monkeypatch, capsys):
    asked = {}

    def measure(**options):
        asked.update(options)
        yield from ROWS

    def command(*arguments):
        monkeypatch.setattr(bench, "measure", measure)
        monkeypatch.setattr(sys, "argv", ["modeseek", "bench", *arguments])
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setenv("XLA_FLAGS", "")  # what the command adds is taken back
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert left.value.code == 0
        return capsys.readouterr().out, asked

    return command


def test_json_is_a_list_of_objects_with_the_promised_keys(run):
    out, _ = run("--json")
    rows = json.loads(out)
    assert [row["name"] for row in rows] == [row.name for row in ROWS]
    assert all({"name", "value", "unit", "target", "holds"} <= set(row) for row in rows)
    assert [row["holds"] for row in rows] == [True, False, None, None]
    assert rows[3]["value"] is None


def test_the_table_says_what_holds_and_what_could_not_be_measured(run, monkeypatch):
    monkeypatch.setattr(cli.console, "_width", 120)
    out, _ = run()
    for words in ("fast enough", "1.25", "<= 1.5", "NO", "ns a sample", "PyTorch is not installed"):
        assert words in out
    assert bench.describe_machine().split(",")[0].split()[0] in out


def test_options_reach_the_measurements(run):
    _, asked = run("--quick", "--repeats", "3", "--json")
    assert asked == {"gallery": False, "quick": True, "repeats": 3}


def test_the_machine_is_described_in_one_line():
    described = bench.describe_machine()
    assert "jax" in described
    assert "\n" not in described
