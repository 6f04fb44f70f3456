"""Whoever follows the pages on adding a method and a study has both."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"

COMMANDS = {
    "add_a_method": [
        "list methods",
        "simulate --reward r.csv --reference uniform --method squared_hinge --steps 5 --out out",
    ],
    "add_a_study": ["list studies", "claims --quick loser_of_one_pair"],
}
SEEN = {"add_a_method": "squared_hinge", "add_a_study": "A small β"}
RUN = """
import sys
from bandits.cli import main
for command in {commands}:
    sys.argv = ["modeseek", *command.split()]
    try:
        main()
    except SystemExit as end:
        assert not end.code, command
    print("ran", command)
"""


@pytest.mark.parametrize("page", COMMANDS)
def test_a_newcomer_who_follows_the_page_has_what_it_promises(page, tmp_path):
    (tmp_path / "r.csv").write_text("a,0\nb,0.5\nc,1\n")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text(), re.DOTALL)
    code = "\n".join([*blocks, RUN.format(commands=COMMANDS[page])])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert SEEN[page] in done.stdout
    assert done.stdout.count("\nran ") == len(COMMANDS[page])
