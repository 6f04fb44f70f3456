"""The commands of the pages run, exit and print as the pages say.

A page is read from top to bottom, in a copy of the examples:

- a fence without a language holds commands; "exits with 1" just above is the exit code;
- `text` is what the commands above print: each line, by its words;
- `csv`, `json` and `jsonl` are files. After a name such as `pairs.csv` the file is written; after
  one in a folder, such as `out/arms.csv`, a command has written it, and the rows are among its rows
  in the columns that are shown.

Numbers are right if they round to what the page says.
"""

import csv
import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import pytest

from bandits import cli
from bandits.files.comparisons import read_comparisons
from bandits.files.tables import read_vector
from bandits.files.trainer_log import read_logs

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"`([\w/]+\.(?:csv|jsonl?))`[^`\n]*:\s*\Z")
EXIT = re.compile(r"exits\s+with\s+(\d)[^`]*\Z")
READERS = {
    "One number an arm": read_vector,
    "Pairs": read_comparisons,
    "Trainer logs": read_logs,
}
"""What reads the files of a section of the page on formats."""


def section(page, title):
    return re.search(rf"^## {title}$(.*?)(?=^## |\Z)", page, re.M | re.S).group(1)


def fences(page):
    """Yield each fence's language and content, and the text above it."""
    above = 0
    for fence in FENCE.finditer(page):
        yield fence[1], fence[2], page[above : fence.start()]
        above = fence.end()


def words(text):
    """Return the words of a text, without the frames of tables and punctuation."""
    return [word.strip("()[],;:.") for word in re.sub(r"[━┏┳┓┃┡╇┩│└┴┘]", " ", text).split()]


def number(text):
    return float(text) if re.fullmatch(r"[-+]?[\d.]*\d(e[-+]?\d+)?", text) else None


def agrees(shown, found):
    """Whether a word of the page is that of the output, or its number rounds to the page's."""
    left, right = number(shown), number(found)
    if left is None or right is None:
        return shown == found
    mantissa, _, exponent = shown.partition("e")
    decimals = len(mantissa.partition(".")[2])
    unit = 10.0 ** (int(exponent or 0) - decimals) if decimals else 0.0
    return abs(left - right) <= max(0.6 * unit, 1e-3 * abs(left), 1e-4)


def says(output, line):
    wanted, found = words(line), words(output)
    return any(
        all(map(agrees, wanted, found[i : i + len(wanted)]))
        for i in range(len(found) - len(wanted) + 1)
    )


def rows_not_found(shown, path):
    rows = list(csv.DictReader(path.read_text("utf-8").splitlines()))
    return [
        row
        for row in csv.DictReader(shown.splitlines())
        if not any(all(agrees(row[name], found[name]) for name in row) for found in rows)
    ]


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run commands in this process, in a folder with the examples; returns code and output."""
    shutil.copytree(ROOT / "examples", tmp_path / "work" / "examples")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path.parent / "cache"))
    monkeypatch.setattr(cli.console, "width", 200)

    def run(line):
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        monkeypatch.setenv("XLA_FLAGS", "")
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # the command prints them, which is tested here
            with pytest.raises(SystemExit) as ended:
                cli.main()
        return ended.value.code, "".join(capfd.readouterr())

    return run


PAGES = {
    "faq": (ROOT / "docs" / "faq.md").read_text("utf-8"),
    "formats": (ROOT / "docs" / "formats.md").read_text("utf-8"),
    "README": section((ROOT / "README.md").read_text("utf-8"), "A bandit of your own"),
}


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_do_what_it_says(command, page):
    output, commands = "", 0
    for language, content, above in fences(PAGES[page]):
        named, exits = FILE.search(above), EXIT.search(above)
        if language == "":
            output = ""
            for line in content.replace("\\\n", " ").splitlines():
                assert line.startswith("modeseek "), line
                code, printed = command(line)
                assert code == (int(exits[1]) if exits else 0), f"{line}\n{printed}"
                output += printed
                commands += 1
        elif named and "/" in named[1]:
            assert rows_not_found(content, Path(named[1])) == [], named[1]
        elif named:
            Path(named[1]).write_text(content, "utf-8")
        elif language == "text" and page == "faq":
            for line in content.splitlines():
                assert says(output, line), f"{line}\n{output}"
    assert commands


@pytest.mark.parametrize("title", READERS)
def test_the_example_files_of_a_format_are_read(tmp_path, recwarn, title):
    examples = 0
    for language, content, above in fences(section(PAGES["formats"], title)):
        named = FILE.search(above)
        if language and not (named and "/" in named[1]):
            reader = read_comparisons if content.startswith("winner,") else READERS[title]
            (tmp_path / "file").write_text(content, "utf-8")
            assert reader(tmp_path / "file"), content
            examples += 1
    assert examples >= 2


def test_numbers_agree_as_they_are_rounded():
    assert agrees("0.693", "0.6931472")
    assert agrees("1", "0.99999994")
    assert agrees("0", "0.0")
    assert not agrees("0.693", "0.68")
    assert not agrees("1", "0.5")
    assert not agrees("2.24", "-2.24")
    assert agrees("NaN", "NaN")
    assert not agrees("e", "1")
