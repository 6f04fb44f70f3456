"""The command end to end: what it prints and writes, and what it refuses, leaving nothing."""

import dataclasses
import importlib.metadata
import importlib.resources
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import ClassVar

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure

import bandits
from bandits import cli
from bandits.losses import METHODS
from bandits.problems.environments import ENVIRONMENTS
from bandits.studies import STUDIES, Claim
from bandits.studies.intervals import Interval
from bandits.studies.study import Criterion, Study
from bandits.studies.study import claim as claim_of

# What the command says of a run stays a warning here, as it does for users.
pytestmark = [
    pytest.mark.filterwarnings(f"default::bandits.{name}")
    for name in (
        "simulation.UndeterminedWarning",
        "sweeps.DivergenceWarning",
        "files.tables.FileWarning",
    )
]

EXAMPLES = Path(__file__).parents[2] / "examples"

WRITERS = ("figures", "animate", "explorer")

LOG = [
    {"step": 1, "loss": 0.6931, "rewards/chosen": 0.0, "rewards/rejected": 0.0},
    {"step": 100, "loss": 0.66, "rewards/chosen": -0.26, "rewards/rejected": -0.33},
    {"step": 100, "train_runtime": 1.0, "train_loss": 0.7},
]

FILES = {
    "trainer_state.json": json.dumps({"log_history": LOG}),
    "bad.json": '{"log_history": [',
    "p.csv": "arm,value\na,0.2\nb,0.3\nc,0.5\n",
    "q.csv": "arm,value\nc,0.1\nb,0.4\na,0.5\n",
    "reward.csv": "a,1\nb,0.5\nc,0\n",
    "last.csv": "a,0\nb,0.5\nc,1\n",
    "pairs.csv": "winner,loser,count\na,b,2\na,c,1\nc,b,0.5\n",
    "counts.csv": "a,2\nb,3\nc,5\n",
    "zero.csv": "a,0.5\nb,0.5\nc,0\n",
    "infinite.csv": "a,0\nb,inf\nc,0\n",
    "malformed.csv": "a,0.2\nb,0.3\nc,half\n",
    "empty.npy": "",
    "binary.csv": "\0\1\2\udcff",
    "file": "",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with the files above; compiled programs stay out of the user's cache."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path.parent / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(cli.console, "width", 200)
    work = tmp_path / "work"
    for name in ("folder.html", "taken/weights.pdf"):
        (work / name).mkdir(parents=True)
    for name, text in FILES.items():
        (work / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    monkeypatch.chdir(work)
    return work


@pytest.fixture
def command(monkeypatch, capfd):
    """Run the command in this process; returns its exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["modeseek", *arguments])
        monkeypatch.setenv("XLA_FLAGS", "")  # what the command adds is taken back
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code, *capfd.readouterr())

    return run


def subprocess_command(*arguments):
    return subprocess.run(
        [sys.executable, "-c", "from bandits.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def listing(folder):
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


def is_blank(path):
    return matplotlib.image.imread(path)[..., :3].std() < 0.01


def assert_refused(result, *words):
    """Exit code 2, and one line on stderr that holds the words."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("modeseek: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_list_names_everything_and_cuts_no_name(command, monkeypatch, width):
    monkeypatch.setattr(cli.console, "width", width)
    code, out, err = command("list")
    assert (code, err) == (0, "")
    methods = METHODS.values()
    defaults = [f"{k}={v:g}" for m in methods for k, v in m.hyperparameters.items()]
    for name in (*STUDIES, *METHODS, *ENVIRONMENTS, *defaults):
        assert re.search(rf"(?<!\S){re.escape(name)}(?!\S)", out), name
    if width == 200:
        assert all(study.source in out for study in STUDIES.values())


def test_list_prints_the_lists_that_are_named(command):
    code, out, _ = command("list", "environments", "studies")
    assert code == 0
    assert 0 < out.index(" Environments ") < out.index(" Studies ")
    assert " Methods " not in out
    assert "Raises" not in out


@pytest.mark.parametrize("width", [40, 60, 80])
def test_claims_cut_no_name(command, monkeypatch, width):
    name = "a_study_of_28_letters_of_all"
    monkeypatch.setattr(cli, "STUDIES", {name: fake_study(name, True)})
    monkeypatch.setattr(cli.console, "width", width)
    _, out, _ = command("claims")
    assert f"{name}  (nowhere)" in out or f" {name} " in out
    assert "…" not in out


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_shows_an_example_that_runs(command, arguments):
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    assert all(name in out for name in cli.COMMANDS)
    (example,) = [line for line in out.splitlines() if line.startswith("An example: modeseek ")]
    assert command(*example.split()[3:])[0] == 0


def test_the_version_is_that_of_the_package(command, monkeypatch):
    version = importlib.metadata.version("modeseek")
    assert command("--version") == (0, f"modeseek {version}\n", "")
    assert bandits.__version__ == version

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert bandits.__version__ == "0+unknown"
    with pytest.raises(AttributeError):
        _ = bandits.no_such_name


def test_types_are_shipped():
    data = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())
    for package in ("bandits", "theory"):
        assert "py.typed" in data["tool"]["setuptools"]["package-data"][package]
        assert importlib.resources.files(package).joinpath("py.typed").is_file()


STREAMS = {
    "list > /dev/full": (1, "modeseek: cannot write to stdout: No space left on device\n"),
    "list >&-": (1, "modeseek: cannot write to stdout: Bad file descriptor\n"),
    "--help > /dev/full": (1, "modeseek: cannot write to stdout: No space left on device\n"),
    "list 2>&-": (0, ""),
    "claims lemas > /dev/full": (2, "modeseek: unknown study 'lemas'; did you mean"),
    "claims lemas 2> /dev/full": (2, ""),
    "list | head -1": (1, ""),
    "list": (0, ""),
}


def test_streams_that_take_nothing_cost_a_sentence_at_most():
    """A shell reports what its Python ends with, also where that fails while it ends."""
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    shells = {
        words: subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m bandits {words}"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for words in STREAMS
    }  # fmt: skip
    for words, (code, problem) in STREAMS.items():
        out, err = shells[words].communicate(timeout=300)
        assert shells[words].returncode == code, words
        assert err.decode().startswith(problem), words
        assert err.count(b"\n") == bool(problem), words
    assert b"| mode_seeking " in out
    out.decode("ascii")


def test_figures_writes_a_picture_and_its_data_and_prints_the_claims(folder):
    before = listing(folder)
    result = subprocess_command("figures", "mass_relocation", "--quick", "--out", "new/figures")
    assert (result.returncode, result.stderr) == (0, "")
    written = set(listing(folder)) - set(before)
    out = folder / "new" / "figures"
    picture, vector, data = (out / f"mass_relocation.{kind}" for kind in ("png", "pdf", "nc"))
    assert written == {out.parent, out, picture, vector, data}
    assert not is_blank(picture)
    assert vector.read_bytes().startswith(b"%PDF")
    with xr.open_dataset(data, engine="scipy") as dataset:
        assert dataset.study == "mass_relocation"
        assert dict(dataset.sizes) == {"pair": 2, "instance": 5000, "category": 2}
        assert json.loads(dataset.settings)["instances"] == 5000
        claims = STUDIES["mass_relocation"].judge(dataset)
    assert all(claim.holds for claim in claims)
    assert "mass_relocation.png" in result.stdout
    for case in ("Case 1", "Case 2", "Case 3"):
        assert case in result.stdout


def test_claims_as_json_have_every_field_of_a_claim_and_the_three_cases_of_the_theorem(command):
    code, out, err = command("claims", "mass_relocation", "--quick", "--json")
    assert (code, err) == (0, "")
    claims = json.loads(out, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    dataset = STUDIES["mass_relocation"].measure(quick=True)
    expected = STUDIES["mass_relocation"].claims(dataset)
    assert claims == [dataclasses.asdict(claim) for claim in expected]
    for claim in claims:
        assert set(claim) == {field.name for field in dataclasses.fields(Claim)}
        assert claim["study"] == "mass_relocation"
        assert claim["low"] <= claim["effect"] <= claim["high"]
        assert isinstance(claim["holds"], bool)
    for case in ("Case 1", "Case 2", "Case 3"):
        (claim,) = [c for c in claims if c["statement"].startswith(case)]
        assert "5,000 of 5,000 instances agree" in claim["statement"]
        assert claim["holds"]
        assert claim["source"] == "T24, Theorem 6.5"


def fake_study(name, holds, asserted=True, effect=1.0, run=None):
    class Fake(Study):
        source, question = "nowhere", "is it?"
        quick: ClassVar = {"size": 2}

        size: int = 3

        def run(self):
            return xr.Dataset({"x": ("i", np.arange(self.size))})

        @classmethod
        def plot(cls, dataset):
            return Figure()

        @classmethod
        def judge(cls, dataset):
            interval, criterion = Interval(effect, 0.5, 1.5), Criterion(lambda _: holds, "")
            said = {"asserted": asserted, "note": "With E[a] of [b]."}
            return [claim_of(f"{name} is so", interval, criterion, **said)]

    Fake.name = name
    if run is not None:
        Fake.run = run
    return Fake


@pytest.mark.parametrize("form", [[], ["--json"]])
@pytest.mark.parametrize(
    ("holds", "asserted", "expected"),
    [(True, True, 0), (False, True, 1), (False, False, 0), (True, False, 0)],
)
def test_claims_exits_1_only_where_an_asserted_claim_fails(
    command, monkeypatch, form, holds, asserted, expected
):
    fakes = {
        "good": fake_study("good", True),
        "other": fake_study("other", holds, asserted),
    }
    monkeypatch.setattr(cli, "STUDIES", fakes)
    code, out, _ = command("claims", "--processes", "1", *form)
    assert code == expected
    assert "good is so" in out
    assert "With E[a] of [b]." in out
    if form:
        assert [claim["holds"] for claim in json.loads(out)] == [True, holds]


def test_only_the_studies_named_are_run_and_each_once(command, monkeypatch):
    fakes = {name: fake_study(name, True) for name in ("first", "second", "third")}
    monkeypatch.setattr(cli, "STUDIES", fakes)
    _, out, _ = command("claims", "third", "first", "third", "--json", "--processes", "1")
    assert [claim["study"] for claim in json.loads(out)] == ["third", "first"]


@pytest.mark.parametrize(("flag", "size"), [(["--quick"], 2), ([], 3)])
def test_figures_replaces_what_an_earlier_run_wrote(command, monkeypatch, folder, flag, size):
    monkeypatch.setattr(cli, "STUDIES", {"fake": fake_study("fake", True)})
    (folder / "figures").mkdir()
    (folder / "figures" / "fake.nc").write_text("old")
    code, _, _ = command("figures", *flag)
    assert code == 0
    assert sorted(os.listdir("figures")) == ["README.md", "fake.nc", "fake.pdf", "fake.png"]
    with xr.open_dataset("figures/fake.nc", engine="scipy") as dataset:
        assert dataset["x"].size == size


def test_the_number_of_processes_changes_no_byte(folder):
    names = "mass_relocation", "weights"
    made = []
    for processes in ("1", "2"):
        arguments = ("figures", *names, "--quick", "--out", processes, "--processes", processes)
        result = subprocess_command(*arguments)
        assert result.returncode == 0
        order = [result.stdout.index(f" {name}  (") for name in names]
        assert order == sorted(order)
        made.append({path.name: path.read_bytes() for path in (folder / processes).iterdir()})
    alone, side_by_side = made
    assert len(alone) == 6
    assert side_by_side == alone


@pytest.mark.parametrize(
    ("number", "send", "word"),
    [
        (signal.SIGINT, os.killpg, "interrupted"),
        (signal.SIGTERM, os.kill, "terminated"),
        (signal.SIGHUP, os.killpg, "hung up"),
    ],
)
def test_an_interrupt_of_several_processes_leaves_whole_figures_only(folder, number, send, word):
    # Whatever started the tests may have had them ignore it.
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    program += "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
    start = [sys.executable, "-c", program + "from bandits.cli import main; main()"]
    options = ["figures", "--quick", "--out", "out", "--processes", "2"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*start, *options], **streams, start_new_session=True) as process:
        first = process.stdout.readline()
        send(process.pid, number)
        out, err = process.communicate(timeout=300)  # the pipes end with the last process
    assert (process.returncode, err) == (128 + number, f"modeseek: {word}\n")
    written = [word for line in (first + out).splitlines() for word in line.split("  ")[:3]]
    left = {f"out/{path.name}" for path in (folder / "out").iterdir()}
    assert set(written) <= left
    assert len(left) % 3 == 0
    assert not any(".part-" in name for name in left)


def test_an_interrupt_while_the_command_is_loaded_costs_no_traceback():
    interrupting = """if True:
        import sys
        class Interrupt:
            def find_spec(self, name, path=None, target=None):
                if name == "bandits.cli":
                    raise KeyboardInterrupt
        sys.meta_path.insert(0, Interrupt())
        from bandits.__main__ import main
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", interrupting], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "modeseek: interrupted\n")


def test_simulate_to_a_target_writes_the_trajectory_and_a_picture(command, folder):
    before = listing(folder)
    code, out, err = command(
        "simulate", "--reference", "p.csv", "--target", "q.csv", "--out", "out", "--steps", "400"
    )
    assert (code, err) == (0, "")
    names = {path.name for path in set(listing(folder)) - set(before)}
    assert names == {
        *("out", "trajectory.png", "trajectory.pdf", "trajectory.nc", "trajectory.csv"),
        *("arms.csv", "probabilities.csv"),
    }
    assert not is_blank("out/trajectory.png")
    with xr.open_dataset("out/trajectory.nc", engine="scipy") as dataset:
        assert dataset["arm"].values.astype(str).tolist() == ["a", "b", "c"]
        final = np.exp(dataset["log_probs"].sel(step=400))
        np.testing.assert_allclose(final, [[0.5, 0.4, 0.1]] * 2, atol=0.01)
    rows = [line.split(",") for line in Path("out/trajectory.csv").read_text().splitlines()]
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert {row["loss"] for row in table} == {"forward_kl", "reverse_kl"}
    starts = [float(row["forward_kl"]) for row in table if row["step"] == "0"]
    assert starts == pytest.approx(
        [0.5 * np.log(0.5 / 0.2) + 0.4 * np.log(0.4 / 0.3) + 0.1 * np.log(0.1 / 0.5)] * 2, rel=1e-4
    )
    assert "concentrability max target/reference = 2.5" in out


def test_simulate_takes_a_reward_and_its_options(command):
    code, out, _ = command(
        *("simulate", "--reference", "counts.csv", "--normalize", "--reward", "reward.csv"),
        *("--beta", "0.5", "--method", "forward_kl", "--learning-rate", "0.01", "--steps", "1"),
        *("--optimizer", "adam", "--natural-gradient"),
    )
    assert code == 0
    assert "forward_kl" in out
    assert "reverse_kl" not in out
    with xr.open_dataset("simulation/trajectory.nc", engine="scipy") as dataset:
        assert dataset.beta == 0.5
        assert dataset.optimizer == "adam"
        assert dataset.natural_gradient == 1
        assert float(dataset["learning_rate"]) == 0.01
        p = np.array([0.2, 0.3, 0.5])
        gibbs = p * np.exp([2, 1, 0])
        np.testing.assert_allclose(np.exp(dataset["target_log_probs"]), gibbs / gibbs.sum(), 1e-5)


@pytest.mark.parametrize(("place", "method"), [(0, "forward_kl"), (1, "dpo")])
def test_the_examples_shipped_run_as_their_readme_says(command, place, method):
    lines = [t for t in (EXAMPLES / "README.md").read_text().splitlines() if "modeseek sim" in t]
    arguments = lines[place].replace("examples/", f"{EXAMPLES}/").split()[1:]
    code, out, err = command(*arguments, "--steps", "20")
    assert (code, len(lines)) == (0, 2)
    # The prior decides some rewards of the letters' pairs, and that is said.
    assert ("the prior alone sets" in err) == (method == "dpo")
    assert method in out


def final_probabilities():
    with xr.open_dataset("simulation/trajectory.nc", engine="scipy") as dataset:
        last = np.exp(dataset["log_probs"].isel(step=-1))
        return dict(zip(dataset["loss"].values.astype(str), last.values, strict=True))


def test_one_method_that_diverges_costs_exit_1_and_the_others_are_written(command):
    Path("noisy.csv").write_text("winner;loser;count\na;b;3\nb;a;1\n")
    code, out, err = command(
        *("simulate", "--preferences", "noisy.csv", "--beta", "10", "--learning-rate", "1"),
        *("--method", "dpo", "preference_likelihood"),
    )
    assert code == 1
    assert "warning: dpo diverged: it does not settle" in err
    assert "try learning_rate=0.02" in err
    assert "diverged" in out
    assert final_probabilities()["preference_likelihood"][0] == pytest.approx(0.75, abs=1e-3)


def test_preferences_alone_say_who_won_and_what_moved(command):
    Path("votes.csv").write_text("model_a,model_b,winner\nx,y,model_a\nx,y,tie\nz,y,model_a\n")
    code, out, _ = command(
        *("simulate", "--preferences", "votes.csv", "--beta", "0.1", "1", "--steps", "50"),
        *("--hyperparameter", "label_smoothing=0.1", "--record", "0", "50"),
    )
    assert code == 0
    assert "Who won" in out
    assert re.search(r"DPO β = 1: chosen fell", out)
    arms = pd.read_csv("simulation/arms.csv")
    assert sorted(set(arms.arm)) == ["x", "y", "z"]
    assert set(pd.read_csv("simulation/probabilities.csv").step) == {0, 50}
    assert not is_blank("simulation/training.png")


def test_a_reference_without_the_best_arm_is_one_line_of_warning(folder):
    result = subprocess_command(
        *("simulate", "--reference", "zero.csv", "--reward", "last.csv"),
        *("--method", "reverse_kl", "--steps", "1"),
    )
    assert result.returncode == 0
    assert result.stderr == (
        "modeseek: warning: reference is zero on every arm of the highest reward, 1; no policy "
        "under a KL penalty gets there, the most it can reach is 0.5\n"
    )
    assert (folder / "simulation" / "trajectory.png").exists()


def test_a_trainers_log_is_read_into_a_table_a_sentence_and_files(command, folder):
    code, out, err = command("read", "trainer_state.json", "--out", "read", "--beta", "0.1")
    assert (code, err) == (0, "")
    assert "chosen fell by 2.6 nats and rejected by 3.3 while the margin grew by 0.7" in out
    assert "the policy starts at the reference" in out
    assert "rewards/margins" in out
    names = {path.name for path in (folder / "read").iterdir()}
    assert names == {"training.png", "training.pdf", "training.csv"}
    assert not is_blank("read/training.png")


SIMULATE = ["simulate", "--reference", "p.csv"]
TO_TARGET = [*SIMULATE, "--target", "q.csv"]
FROM_PAIRS = [*SIMULATE, "--preferences", "pairs.csv", "--method"]
ONE_STEP = [*TO_TARGET, "--method", "forward_kl", "--steps", "1"]
DIVERGING = [*TO_TARGET, "--method", "forward_kl", "--natural-gradient", "--learning-rate", "2e38"]

FILM = ["animate", "mode_seeking", "--out"]

REFUSED = {
    "an option out of range": ([*TO_TARGET, "--pseudocount", "-1"], "pseudocount is -1", ">= 0"),
    "no method": ([*TO_TARGET, "--method"], "method is empty", "name at least one"),
    "misspelt method": (
        [*TO_TARGET, "--method", "forwrd_kl"],
        "unknown method 'forwrd_kl'; did you mean 'forward_kl'?",
        "allowed: ",
    ),
    "misspelt optimizer": ([*TO_TARGET, "--optimizer", "adma"], "did you mean 'adam'?"),
    "a hyperparameter without a value": (
        [*TO_TARGET, "--hyperparameter", "tau"],
        "hyperparameter is 'tau'; give NAME=VALUE",
    ),
    "hyperparameter out of range": (
        [*FROM_PAIRS, "hypo", "--hyperparameter", "kl_coefficient=-1"],
        "kl_coefficient is -1",
    ),
    "a damaged log": (["read", "bad.json"], "it is not JSON"),
    "no log": (["read", "none.json"], "cannot read none.json"),
    "beta of a log": (["read", "trainer_state.json", "--beta", "-1"], "beta is -1"),
    "a file for a folder of a log": (["read", "none.json", "--out", "file"], "cannot write file"),
    "no processes": (["claims", "--processes", "0"], "processes is 0; it must be a whole number"),
    "misspelt list": (["list", "Method"], "unknown list 'Method'; did you mean 'methods'?"),
    "misspelt command": (["Figure"], "unknown command 'Figure'; did you mean 'figures'?"),
    "misspelt figure": (["figures", "mode_seking"], "'mode_seking'; did you mean 'mode_seeking'?"),
    "misspelt claim": (["claims", "mass"], "unknown study 'mass'", "allowed: mode_seeking"),
    "neither reward nor target": (SIMULATE, "either a reward or a target"),
    "both reward and target": ([*TO_TARGET, "--reward", "reward.csv"], "either a reward or"),
    "malformed CSV": ([*SIMULATE, "--target", "malformed.csv"], "line 3: 'half' is not a number"),
    "a reward that is infinite": ([*SIMULATE, "--reward", "infinite.csv"], "line 2: 'inf' is"),
    "counts": ([*SIMULATE, "--target", "counts.csv"], "target sums to 10", "--normalize"),
    "binary CSV": ([*SIMULATE, "--target", "binary.csv"], "binary.csv, line 1"),
    "empty npy": ([*SIMULATE, "--target", "empty.npy"], "empty.npy"),
    "missing file": ([*SIMULATE, "--target", "missing.csv"], "cannot read missing.csv: No such"),
    "unreachable target": ([*SIMULATE, "--target", "zero.csv"], "on arm 'c'", "--pseudocount"),
    "data that a method lacks": ([*TO_TARGET, "--method", "hypo"], "only a target is given"),
    "pairs of an excluded arm": (
        ["simulate", "--reference", "zero.csv", "--preferences", "pairs.csv", "--method", "rlhf"],
        "preferences name arm 'c', which the reference excludes",
    ),
    "unwritable folder": ([*ONE_STEP, "--out", "file/out"], "cannot write file/out/"),
    "a file for a folder": ([*ONE_STEP, "--out", "file"], "cannot write file/trajectory.png"),
    "unwritable figures": (["figures", "--out", "file/out"], "cannot write to the folder file/out"),
    "a folder for a figure": (["figures", "weights", "--out", "taken"], "taken/weights.pdf: Is a"),
    "a folder for the gallery": (["figures", "--out", "taken"], "cannot write taken/"),
    "a folder for a page": (["explorer", "--out", "folder.html"], "folder.html: Is a directory"),
    "no folder for a page": (["explorer", "--out", "/proc/a.html"], "cannot write /proc/a.html"),
    "a long name": (["explorer", "--out", "a" * 300 + ".html"], "File name too long"),
    "a folder for a film": ([*FILM, "folder.html"], "folder.html: Is a directory"),
    "a file for a folder of films": ([*FILM, "file/a.gif"], "file/a.gif: Not a directory"),
    "no folder for a film": ([*FILM, "/proc/a.gif"], "cannot write /proc/a.gif"),
    "a long name of a film": ([*FILM, "a" * 300 + ".gif"], "File name too long"),
    "a page in no folder": (["explorer", "--out", "no/page.html"], "cannot write no/page.html"),
    "misspelt film": (["animate", "mode_seking", "--out", "a.gif"], "did you mean 'mode_seeking'"),
    "a still film": (
        ["animate", "weights", "--out", "a.gif"],
        "unknown study that moves 'weights'",
    ),
    "no kind of film": ([*FILM, "a.avi"], "must end in .html, .gif or .mp4"),
    "a film in no folder": ([*FILM, "no/a.gif"], "cannot write no/a.gif: No such file"),
    "no frames": ([*FILM, "a.gif", "--frames-per-second", "0"], "from 1 to 50"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_gets_one_line_and_leaves_nothing_behind(command, folder, case):
    arguments, *words = REFUSED[case]
    before = listing(folder)
    assert_refused(command(*arguments), *words)
    assert listing(folder) == before


def test_a_refusal_of_the_real_command_is_one_line_without_a_traceback(folder):
    before = listing(folder)
    result = subprocess_command(*REFUSED["malformed CSV"][0])
    assert_refused((result.returncode, result.stdout, result.stderr))
    assert listing(folder) == before


def test_a_divergence_in_the_real_command_is_one_line_on_stderr_and_exit_1():
    result = subprocess_command(*DIVERGING)
    assert result.returncode == 1
    assert result.stderr.startswith("modeseek: warning: forward_kl diverged: it became NaN after")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [a for a, *_ in REFUSED.values() if a[0] in WRITERS])
def test_a_refused_output_costs_no_run(command, monkeypatch, arguments):
    ran = []
    monkeypatch.setattr("bandits.explorer.run", ran.append)
    monkeypatch.setattr(Study, "measure", classmethod(lambda cls, quick=False: ran.append(cls)))
    assert_refused(command(*arguments))
    assert ran == []


@pytest.mark.parametrize(
    "arguments",
    [["--steps"], ["simulate"], [*TO_TARGET, "--steps", "ten"], [*TO_TARGET, "--setps", "1"]],
)
def test_what_cannot_be_parsed_exits_2_without_a_traceback(command, folder, arguments):
    before = listing(folder)
    code, out, err = command(*arguments)
    assert code == 2
    assert "Traceback" not in out + err
    assert err != ""
    assert listing(folder) == before


@pytest.mark.parametrize("name", ["a[b]c", "x[/b]", "ä ö"])
def test_an_output_folder_may_have_any_name(command, monkeypatch, name):
    monkeypatch.setattr(cli, "STUDIES", {"fake": fake_study("fake", True)})
    code, out, _ = command("figures", "--out", name)
    assert code == 0
    assert f"{name}/fake.png" in out
    assert os.path.exists(f"{name}/fake.png")


def test_a_write_that_fails_half_way_leaves_no_new_file(command, folder):
    (folder / "out" / "trajectory.nc").mkdir(parents=True)
    before = listing(folder)
    assert_refused(command(*ONE_STEP, "--out", "out"), "trajectory.nc")
    assert listing(folder) == before


def interrupted(settings):
    raise KeyboardInterrupt


def interrupted_with_a_film_half_written(settings):
    try:
        raise KeyboardInterrupt
    finally:
        raise subprocess.CalledProcessError(255, "ffmpeg")


def terminated(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError


STOPS = {
    "interrupted": (interrupted, 130),
    "interrupted, and more": (interrupted_with_a_film_half_written, 130),
    "terminated": (terminated, 143),
}


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize(
    "arguments",
    [
        ["claims", "mode_seeking"],
        ["figures", "mode_seeking", "--out", "."],
        [*FILM, "a.gif"],
        ["explorer"],
    ],
)
def test_a_stop_is_one_sentence_and_leaves_nothing(command, monkeypatch, folder, arguments, stop):
    run, code = STOPS[stop]
    monkeypatch.setattr(STUDIES["mode_seeking"], "run", run)
    monkeypatch.setattr("bandits.explorer.run", run)
    before = listing(folder)
    assert command(*arguments) == (code, "", f"modeseek: {stop.partition(',')[0]}\n")
    assert listing(folder) == before


def test_a_warning_is_said_once(command, monkeypatch):
    def warn(settings):
        for text in ("this is odd", "this is odd", "and this"):
            warnings.warn(text, stacklevel=1)
        return xr.Dataset()

    fakes = {n: fake_study(n, True, run=warn) for n in ("a", "b")}
    monkeypatch.setattr(cli, "STUDIES", fakes)
    _, _, err = command("claims", "--processes", "1")
    assert err == "modeseek: warning: this is odd\nmodeseek: warning: and this\n"


def test_animate_writes_a_moving_picture(command, folder, monkeypatch):
    monkeypatch.setattr(STUDIES["mode_seeking"], "quick", {"last_step": 3})
    code, out, err = command("animate", "mode_seeking", "--quick", "--out", "a.html")
    assert (code, err) == (0, "")
    assert out.startswith("a.html  4 frames, ")
    assert (folder / "a.html").read_text("utf-8").count("data:image/png") == 4


def test_explorer_writes_one_page(command, folder):
    code, out, err = command("explorer", "--quick", "--out", "page.html")
    assert (code, err) == (0, "")
    assert out.startswith("page.html  ")
    assert "Where does the policy go?" in (folder / "page.html").read_text("utf-8")
