"""What the README says in Python runs as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SAID = [
    lambda out: float(re.findall(r"-?\d+\.\d+", out)[0]) > 0,  # the best response is raised
    lambda out: "passes" in out and "beta" in out,
    lambda out: "peak" in out and "loss" in out,
]
"""What each prints."""


@pytest.mark.parametrize(("example", "said"), list(zip(EXAMPLES, SAID, strict=True)))
def test_every_example_runs(example, said, capsys):
    exec(compile(example, "README.md", "exec"), {})
    assert said(capsys.readouterr().out)
