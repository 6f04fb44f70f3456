"""The command: one thin function a subcommand; all work is done by the library."""

import dataclasses
import datetime
import errno
import functools
import inspect
import json as _json
import math
import os
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import jax
import platformdirs
import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

import bandits
from bandits import animation, gallery, plotting, simulation, terminal
from bandits.files import (
    make_folder,
    move_files,
    scratch_folder,
    trainer_log,
    whole_file,
    whole_files,
)
from bandits.files.comparisons import read_comparisons
from bandits.files.tables import read_vector
from bandits.kernels.compiler import avoid_ynnpack
from bandits.losses import METHODS
from bandits.problems.environments import ENVIRONMENTS
from bandits.search import plan, read_spec
from bandits.studies import STUDIES, Claim, Study
from bandits.workers import MOST_PROCESSES, processes_for, side_by_side
from theory import checks

if TYPE_CHECKING:
    from bandits.bench import Measurement
    from bandits.sweeps.stored import StoredSweep

MOVING = [name for name, study in STUDIES.items() if study.animate]
"""Studies with a moving picture."""

MOST_FRAMES = 50
"""A second: a GIF cannot show more."""

CENTURY = 100 * 365.25 * 24 * 3600
"""In seconds."""

COMMANDS = (
    "list", "figures", "claims", "simulate", "read", "sweep", "animate", "explorer", "bench",
)  # fmt: skip

DESCRIPTION = """Mode seeking in JAX, re-measured.

An example: modeseek figures mass_relocation --quick

modeseek --version prints the version."""

KEPT = "what is done is kept, the same command goes on with it"

app = tyro.extras.SubcommandApp()
console = Console(highlight=False)

Names = tyro.conf.Positional[tuple[str, ...]]
OutputFolder = Annotated[Path, tyro.conf.arg(help="Folder to write to; made if missing.")]
Quick = Annotated[bool, tyro.conf.arg(help="Small settings that end within seconds.")]
Processes = Annotated[
    int | None,
    tyro.conf.arg(
        help=f"Studies at a time; by default one a core, up to {MOST_PROCESSES}; one on a GPU."
    ),
]


@app.command(name="list")
def list_(kinds: Names = ()) -> int:
    """Print the studies, methods and environments.

    Args:
        kinds: studies, methods or environments; all of them if none is named.
    """
    tables = {
        "studies": _study_tables,
        "methods": _method_tables,
        "environments": _environment_tables,
    }
    for kind in kinds:
        checks.require_known("list", kind, tables)
    for kind in dict.fromkeys(kinds or tables):
        for table in tables[kind]():
            table.columns[0].no_wrap = True
            terminal.show(console, table)
    return 0


def _study_tables() -> list[Table]:
    table = Table("study", "source", "question", title="Studies")
    for study in STUDIES.values():
        table.add_row(study.name, escape(study.source), escape(study.question))
    return [table]


def _method_tables() -> list[Table]:
    marks = Table(
        "method", "on-policy", "sample reuse", "negative gradient", "needs",
        title="Methods",
    )  # fmt: skip
    losses = Table("method", "loss", "hyperparameters", "source", title="Their losses")
    losses.columns[2].no_wrap = True
    losses.columns[3].min_width = len("arXiv:2406.01462")
    family = ""
    for name, method in METHODS.items():
        if method.family != family:
            family = method.family
            for table in (marks, losses):
                table.add_section()
                table.add_row(f"[bold]{family}[/bold]")
        flags = (method.on_policy, method.reuses_samples, method.negative_gradient)
        marks.add_row(name, *("yes" if flag else "no" for flag in flags), method.needs)
        defaults = "\n".join(f"{key}={value:g}" for key, value in method.hyperparameters.items())
        losses.add_row(name, escape(method.formula), defaults, escape(method.source))
    return [marks, losses]


def _environment_tables() -> list[Table]:
    table = Table("environment", "what", "source", title="Environments")
    for name, entry in ENVIRONMENTS.items():
        what = (inspect.getdoc(entry.build) or "").partition("\n\n")[0].replace("\n", " ")
        table.add_row(name, escape(what), escape(entry.source))
    return [table]


@app.command
def figures(
    names: Names = (),
    out: OutputFolder = Path("figures"),
    quick: Quick = False,
    processes: Processes = None,
) -> int:
    """Regenerate figures: each as PNG and as PDF, its data as NetCDF, and the table of claims.

    All of them together are a gallery, with a page that shows them with their claims.

    Args:
        names: Studies to run; all of them if none is named.
    """
    selected, processes = _select(names), processes_for(processes)
    make_folder(out)
    files = [f"{e.name}.{kind}" for e in selected for kind in ("png", "pdf", "nc")]
    _require_places(*(out / name for name in (*files, *([] if names else [gallery.PAGE]))))
    claimed: dict[str, list[Claim]] = {}
    with scratch_folder(out) as scratch:
        make = functools.partial(gallery.make_figure, folder=scratch, quick=quick)
        with side_by_side(make, selected, processes, _prepare) as finished:
            for study, made in finished:
                claimed[study.name] = made.claims
                written = "  ".join(map(str, move_files(made.paths, out)))
                _print(f"{written}  {made.seconds:.1f} s")
    terminal.show(console, _claim_table([c for e in selected for c in claimed[e.name]]))
    if not names:
        with whole_file(out / gallery.PAGE) as part:
            page = gallery.make_page(((e, claimed[e.name]) for e in selected), out)
            part.write_text(page, encoding="utf-8")
        _print(f"{out / gallery.PAGE}: the gallery")
    return 0


@app.command
def claims(
    names: Names = (),
    json: Annotated[bool, tyro.conf.arg(help="Print a JSON list instead of a table.")] = False,
    quick: Quick = False,
    processes: Processes = None,
) -> int:
    """Measure every claim; exit 1 if one that the project asserts does not hold.

    Args:
        names: Studies to run; all of them if none is named.
    """
    selected, processes = _select(names), processes_for(processes)
    measure = functools.partial(_claims_of, quick=quick)
    with side_by_side(measure, selected, processes, _prepare) as measured:
        of_each = {study.name: claims for study, claims in measured}
    claimed = [claim for study in selected for claim in of_each[study.name]]
    if json:
        print(_as_json([dataclasses.asdict(claim) for claim in claimed]))
    else:
        terminal.show(console, _claim_table(claimed))
    return int(any(claim.asserted and not claim.holds for claim in claimed))


@dataclasses.dataclass(frozen=True)
class _Bandit:
    """A bandit of the user's own, and the methods to run on it.

    Attributes:
        reference: File of probabilities, or log-probabilities, to start from; or `uniform`, over
            the arms that the other files name.
        reward: One reward an arm; or --target.
        target: Probabilities to move to.
        preferences: Who was preferred to whom: winner,loser[,count] and what else docs/formats.md
            lists. A tie is half a win each way.
        out: Folder to write to; made if missing.
        method: Methods to run, as `modeseek list methods` names them; by default dpo and rlhf for
            preferences, forward_kl and reverse_kl for a reward or target.
        beta: Coefficient of the KL penalty, >= 0; several are swept.
        hyperparameter: Others, as NAME=VALUE or NAME=VALUE,VALUE: tau=0.05,0.5
            label_smoothing=0.1; `modeseek list methods` has them.
        learning_rate: Step size, > 0; by default one that is safe for each method.
        normalize: Divide reference and target by their sums (for counts).
        pseudocount: Added to each entry before that, so that none is zero.
        join: Take the arms of all files together, probability 0 where one has none. A reward must
            name them all.
    """

    reference: str = simulation.UNIFORM
    reward: Path | None = None
    target: Path | None = None
    preferences: Path | None = None
    out: Path = Path("simulation")
    method: tuple[str, ...] | None = None
    beta: tuple[float, ...] = (0.1,)
    hyperparameter: tuple[str, ...] = ()
    learning_rate: tuple[float, ...] = ()
    normalize: bool = False
    pseudocount: float = 0.0
    join: bool = False

    def read(self) -> dict[str, Any]:
        """Read the files; return the arguments of `bandits.simulation.simulate`."""
        uniform = self.reference == simulation.UNIFORM
        paths = {"reference": None if uniform else Path(self.reference), "target": self.target}
        weights = {name: read_vector(path) for name, path in paths.items() if path}
        start, comparisons = weights.get("reference"), None
        if self.preferences is not None:
            arms = None
            if start is not None and not self.join:
                arms = start.labels or tuple(map(str, range(len(start.values))))
            comparisons = read_comparisons(self.preferences, arms)
        if self.join:
            weights = simulation.join(weights, comparisons)
        distributions = {
            name: simulation.to_distribution(name, vector, self.normalize, self.pseudocount)
            for name, vector in weights.items()
        }
        return {
            **distributions,
            "reward": read_vector(self.reward) if self.reward else None,
            "preferences": comparisons,
            "beta": self.beta,
            "methods": self.method,
            "hyperparameters": dict(_assignment(text) for text in self.hyperparameter),
            "learning_rate": self.learning_rate or None,
        }


@app.command
def simulate(
    bandit: Annotated[_Bandit, tyro.conf.arg(name="")],
    settings: Annotated[simulation.Settings, tyro.conf.arg(name="")],
) -> int:
    """Run a bandit of your own: its trajectory, who won, and pictures.

    Files are recognised by their content: CSV with any delimiter, JSON, JSONL, .npy, Parquet,
    PrefLib. A method that diverged is said, and the command exits with 1; the others' results are
    written all the same.
    """
    with_pairs = bandit.preferences is not None
    paths = simulation.paths(bandit.out, with_pairs)
    _require_places(*paths)
    dataset = simulation.simulate(**bandit.read(), **vars(settings))
    make_folder(bandit.out)
    simulation.write(dataset, paths)
    tables = {f"After {int(dataset.step[-1]):,} steps": simulation.summarise(dataset)}
    tables["Who won: probability, rise in nats"] = simulation.rank(dataset)
    for title, (header, *rows) in tables.items():
        table = Table(*map(escape, header), title=title)
        names = simulation.shorten([name for name, *_ in rows])
        for name, (_, *cells) in zip(names, rows, strict=True):
            table.add_row(*map(escape, (name, *cells)))
        terminal.show(console, table)
    sentences = simulation.describe(dataset) if with_pairs else []
    sentences.append(f"concentrability max target/reference = {dataset.concentrability:.4g}")
    for sentence in [*sentences, "  ".join(map(str, paths))]:
        _print(sentence)
    return int(bool(dataset["diverged"].any()))


@app.command
def read(
    file: Annotated[
        tyro.conf.Positional[Path],
        tyro.conf.arg(
            help="trainer_state.json, or a table of chosen_logps, rejected_logps, "
            "ref_chosen_logps, ref_rejected_logps, one pair a row."
        ),
    ],
    out: OutputFolder = Path("reading"),
    beta: Annotated[
        float | None,
        tyro.conf.arg(help="Of the trainer, > 0; logs do not hold it. Pairs take 0.1 by default."),
    ] = None,
) -> int:
    """Read the log of a preference trainer: what moved, and what follows of the mass."""
    paths = [out / f"training.{suffix}" for suffix in ("png", "pdf", "csv")]
    _require_places(*paths)
    logs = trainer_log.read_logs(file, beta)
    make_folder(out)
    figure = trainer_log.draw_logs(logs)
    with whole_files(*paths) as parts:
        plotting.save(figure, *parts[:2])
        trainer_log.write_csv(logs, parts[2])
    for log in logs:
        header, *rows = trainer_log.summarise_log(log)
        table = Table(*header)
        for row in rows:
            table.add_row(*row)
        terminal.show(console, table)
    sentences = [sentence for log in logs for sentence in trainer_log.describe_log(log)]
    for sentence in [*sentences, "  ".join(map(str, paths))]:
        _print(sentence)
    return 0


@app.command
def sweep(
    spec: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="The grid, as TOML.")],
    out: Annotated[Path, tyro.conf.arg(help="Zarr store to write, or to go on with.")],
    dry_run: Annotated[bool, tyro.conf.arg(help="Say what would be done, and stop.")] = False,
    devices: Annotated[
        int | None,
        tyro.conf.arg(help="Devices to use, cores on a CPU; by default all, or one a worker."),
    ] = None,
    chunk_runs: Annotated[
        int | None, tyro.conf.arg(help="About how many runs a chunk holds; it changes no result.")
    ] = None,
    workers: Annotated[
        int | None, tyro.conf.arg(help="Processes to share the runs out to, on this machine.")
    ] = None,
    scheduler: Annotated[
        str | None,
        tyro.conf.arg(help="Dask cluster to share the runs out to, such as tcp://HOST:8786."),
    ] = None,
    part: Annotated[
        str, tyro.conf.arg(help="Do part I of N only, as I/N, from 1/N to N/N, for job arrays.")
    ] = "1/1",
) -> int:
    """Run a grid of trainings into a Zarr store; stopped, it goes on where it was."""
    # Zarr is imported for this command only: it takes a quarter of a second.
    from bandits.sweeps import cluster, store
    from bandits.sweeps.programs import lanes
    from bandits.sweeps.stored import read_part, stored_sweep

    numbers = read_part(part)
    threads = cluster.require_workers(workers, devices, scheduler)
    search = read_spec(spec)
    stored = stored_sweep(
        path=out,
        identity={"search": search.describe()},
        chunk_runs=chunk_runs,
        devices=lanes(threads),
        **vars(plan(search)),
    )
    if stored.remaining():
        # A new store is made aside.
        _require_places((out if out.exists() else store.aside(out)) / "part", said=out)
    if numbers[0] == 1:  # the other parts have the same to say
        _describe_sweep(stored, workers or 1, numbers[1], estimate=scheduler is None)
    if dry_run:
        return 0
    try:
        with cluster.connect(workers, threads or 1, scheduler) as client:
            summary = stored.run(client, numbers)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(KEPT)
        raise
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise checks.InvalidInput(
            f"the device gave up: {reason}; where it is memory, choose fewer responses or "
            "contexts; what is done is kept"
        ) from error
    diverged = f", {summary.diverged:,} diverged" if summary.diverged else ""
    _print(f"{out}: {summary.done:,} runs done, {summary.kept:,} kept from before{diverged}")
    if summary.missing:
        _print(f"{summary.missing:,} runs of other parts are not done yet")
    return 0


@app.command
def animate(
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=", ".join(MOVING))],
    out: Annotated[Path, tyro.conf.arg(help="FILE.html with controls, FILE.gif or FILE.mp4.")],
    quick: Quick = False,
    frames_per_second: Annotated[int, tyro.conf.arg(help="1 to 50.")] = 12,
) -> int:
    """Write a moving picture of a study; a film needs ffmpeg, the others nothing."""
    checks.require_known("study that moves", name, MOVING)
    if not 1 <= frames_per_second <= MOST_FRAMES:
        raise checks.InvalidInput(
            f"frames_per_second is {frames_per_second}; it must be from 1 to {MOST_FRAMES}"
        )
    path = animation.choose_file(out)
    study = STUDIES[name]
    with whole_file(path) as part:
        frames = study.film(study.measure(quick))
        animation.save(frames, part, study.question, frames_per_second)
    _print(f"{path}  {frames.number} frames, {decimal(path.stat().st_size)}")
    return 0


@app.command
def explorer(
    out: Annotated[Path, tyro.conf.arg(help="HTML file to write.")] = Path("explorer.html"),
    quick: Quick = False,
) -> int:
    """Write a page with sliders: where every method takes the policy. It needs no network."""
    # Bokeh is imported for this command only: it takes half a second.
    from bandits.explorer import QUICK, Settings, make_page, run

    if out.suffix not in (".html", ".htm"):
        raise checks.InvalidInput(f"{out} is no page; its name must end in .html")
    with whole_file(out) as part:
        part.write_text(make_page(run(QUICK if quick else Settings())), encoding="utf-8")
    _print(f"{out}  {decimal(out.stat().st_size)}: open it in a browser")
    return 0


@app.command
def bench(
    json: Annotated[bool, tyro.conf.arg(help="Print a JSON list instead of a table.")] = False,
    gallery: Annotated[
        bool, tyro.conf.arg(help="Time imports and every figure too: 20 minutes more.")
    ] = False,
    quick: Annotated[
        bool, tyro.conf.arg(help="Tiny sizes, to see that it runs; the numbers say nothing.")
    ] = False,
    repeats: Annotated[int, tyro.conf.arg(help="Interleaved rounds of each comparison.")] = 7,
) -> int:
    """Measure the speed that is claimed, beside the floor and beside what users would write."""
    from bandits.bench import describe_machine, measure

    title = escape(describe_machine())
    table = Table("holds", "what", "value", "quartiles", "target", title=title, box=SIMPLE_HEAD)
    for column in (0, 2, 3, 4):
        table.columns[column].no_wrap = True
    rows = []
    with Console(stderr=True).status("measuring") as status:
        for row in measure(gallery=gallery, quick=quick, repeats=repeats):
            status.update(f"measured: {row.name}")
            rows.append(dataclasses.asdict(row))
            table.add_row(*_bench_row(row))
    if json:
        print(_as_json(rows))
    else:
        terminal.show(console, table)
    return 0


def _bench_row(row: "Measurement") -> tuple[str, ...]:
    verdict = {True: "yes", False: "NO", None: ""}[row.holds]
    name = escape(row.name if row.unit == "×" else f"{row.name}, {row.unit}")
    name = f"{name}\n[dim]{escape(row.note)}[/dim]" if row.note else name
    value = "" if row.value is None else f"{row.value:.3g}"
    spread = "" if row.low is None else f"{row.low:.3g} to {row.high:.3g}"
    return verdict, name, value, spread, escape(row.target)


def _describe_sweep(stored: "StoredSweep", workers: int, parts: int, estimate: bool) -> None:
    """Say what there is to do, before it is done."""
    layout, lanes = stored.layout, stored.compiler.devices
    remaining = stored.remaining()
    seconds = stored.estimate(remaining) if remaining and estimate else None
    said = [
        f"{stored.runs:,} runs in {layout.num_programs:,} programs",
        f"{layout.num_chunks:,} chunks",
        f"up to {decimal(layout.num_bytes)}",
    ]
    if remaining < stored.runs:
        said.append(f"{remaining:,} runs to do")
    if seconds is not None:
        kind = "cores" if lanes[0].platform == "cpu" else "devices"
        each = f" for each of {parts} parts" if parts > 1 else ""
        said.append(
            f"about {_duration(seconds / workers / parts)} on {workers * len(lanes)} {kind}{each}, "
            "compiling left out"
        )
    _print("; ".join(said))


def _duration(seconds: float) -> str:
    if seconds > CENTURY:
        return "more than a century"
    return str(datetime.timedelta(seconds=math.ceil(seconds)))


def main() -> None:
    """Run the command.

    It exits with 0; with 1 if a claim fails, or if not all could be written to stdout; with 2 for
    bad input; and with 130, 143 or 129 after Ctrl-C, SIGTERM or SIGHUP.
    """
    with terminal.safe_streams() as stdout:
        code = _run(sys.argv[1:] or ["--help"])
        stdout.flush()
        if stdout.error is not None:
            code = code or 1
            if not isinstance(stdout.error, BrokenPipeError):  # nobody reads on, as with `head`
                _say(f"cannot write to stdout: {stdout.error.strerror or stdout.error}")
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        with terminal.stoppable():
            _prepare()
            if arguments == ["--version"]:
                print(f"modeseek {bandits.__version__}")
                return 0
            if not arguments[0].startswith("-"):
                checks.require_known("command", arguments[0], COMMANDS)
            return app.cli(prog="modeseek", description=DESCRIPTION, args=arguments)
    except SystemExit as left:  # what cannot be parsed, and --help
        return int(left.code or 0)
    except BaseException as error:
        interrupt = terminal.interrupt_behind(error)
        if interrupt is not None:
            number = getattr(interrupt, "number", signal.SIGINT)
            notes = getattr(interrupt, "__notes__", [])
            _say("; ".join([terminal.SIGNALS[number], *notes]))
            return 128 + number
        if isinstance(error, checks.InvalidInput):
            _say(str(error))
            return 2
        raise


def _print(line: str) -> None:
    """Print a line to stdout as it stands, however long."""
    console.print(line, soft_wrap=True, markup=False)


def _say(sentence: str) -> None:
    """Print a sentence to stderr."""
    print(f"modeseek: {sentence}", file=sys.stderr)


def _prepare() -> None:
    """Set this process up, as all that the command starts."""
    avoid_ynnpack()
    _keep_compiled_programs()
    # What overflows is refused in a sentence of our own; NumPy need not announce it.
    warnings.simplefilter("ignore", RuntimeWarning)
    said = set()

    def show_once(message: Warning | str, *_: object, **__: object) -> None:
        """Say one sentence, without the line of code that found it."""
        if str(message) not in said:
            said.add(str(message))
            _say(f"warning: {message}")

    warnings.showwarning = show_once


def _require_places(*files: Path, said: Path | None = None) -> None:
    """Refuse, before any work, files that could not be written, and make nothing.

    A refusal names the file, or ``said``.
    """
    for file in files:
        try:
            if file.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            with tempfile.TemporaryFile(dir=next(p for p in file.absolute().parents if p.exists())):
                pass
        except OSError as error:
            reason = error.strerror or error
            raise checks.InvalidInput(f"cannot write {said or file}: {reason}") from error


def _select(names: tuple[str, ...]) -> list[type[Study]]:
    for name in names:
        checks.require_known("study", name, STUDIES)
    return [STUDIES[name] for name in dict.fromkeys(names or STUDIES)]


def _claims_of(study: type[Study], quick: bool) -> list[Claim]:
    return study.claims(study.measure(quick))


def _assignment(text: str) -> tuple[str, list[float]]:
    name, _, values = text.partition("=")
    try:
        return name.strip(), [float(value) for value in values.split(",")]
    except ValueError:
        raise checks.InvalidInput(
            f"hyperparameter is {text!r}; give NAME=VALUE, such as tau=0.05, or NAME=VALUE,VALUE"
        ) from None


def _claim_table(claimed: list[Claim]) -> Table:
    table = Table(
        "holds", "claim", "effect", "95% interval",
        title="Claims", caption="* not asserted", box=SIMPLE_HEAD,
    )  # fmt: skip
    for column in (0, 2, 3):  # the sentences get what the numbers leave
        table.columns[column].no_wrap = True
    table.columns[1].min_width = max((len(claim.study) for claim in claimed), default=0)
    for i, claim in enumerate(claimed):
        if not i or claim.study != claimed[i - 1].study:
            table.add_section()
            heading = f"[bold]{escape(claim.study)}[/bold]  ({escape(claim.source)})"
            table.add_row("", heading, "", "")
        verdict = "yes" if claim.holds else "NO" if claim.asserted else "no*"
        statement = escape(claim.statement)
        if claim.note:
            statement += f"\n[dim]{escape(claim.note)}[/dim]"
        interval = f"{claim.low:.5g} to {claim.high:.5g}"
        table.add_row(verdict, statement, f"{claim.effect:.5g}", interval)
    return table


def _as_json(rows: list[dict[str, Any]]) -> str:
    # What could not be measured is null, wherever it stands: NaN is no JSON.
    plain = _json.loads(_json.dumps(rows), parse_constant=lambda _: None)
    return _json.dumps(plain, indent=2)


def _keep_compiled_programs() -> None:
    """Keep compiled programs between runs; JAX_ENABLE_COMPILATION_CACHE=false turns it off.

    All of them: a figure has dozens of small ones, which take a second to compile.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update(
            "jax_compilation_cache_dir", str(platformdirs.user_cache_path("modeseek"))
        )
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


if __name__ == "__main__":
    main()
