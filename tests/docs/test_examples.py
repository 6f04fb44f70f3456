"""Examples of docstrings give what they say, and every main function of the theory shows one."""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATHS = sorted([*ROOT.glob("theory/*.py"), *ROOT.glob("bandits/**/*.py")])
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PATHS if ">>>" in path.read_text("utf-8")
]  # fmt: skip

MAIN = {
    "theory.bradley_terry": ["fit_tabular", "fit_linear"],
    "theory.comparison_graph": ["undetermined"],
    "theory.convex": ["minimize"],
    "theory.distributions": ["kl_divergence"],
    "theory.equivalence": ["implicit_reward", "class_distance", "fit_dpo", "fit_rlhf"],
    "theory.generation_verification": ["class_sizes"],
    "theory.gibbs": ["gibbs_log_probs", "optimal_value", "gibbs_at_kl"],
    "theory.mass_relocation": [
        "forward_kl_step", "reverse_kl_step", "equal_policy_threshold", "equal_target_threshold",
    ],
    "theory.mode_seeking": ["policy_gradient", "best_of_n_log_probs", "contrastive_step"],
    "theory.pairs": ["Pairs"],
    "theory.partial_coverage": ["is_dpo_optimum", "dpo_optimum", "displacement_peak"],
    "theory.types": ["checked"],
    "theory.variable_length": ["length_log_probs"],
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_every_example_gives_what_it_says(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("name", MAIN)
def test_main_functions_show_an_example(name):
    found = doctest.DocTestFinder().find(importlib.import_module(name))
    shown = {test.name for test in found if test.examples}
    assert {f"{name}.{function}" for function in MAIN[name]} <= shown
