"""A small sweep that all of these tests share, with a run that diverges."""

import pytest

from bandits.explorer import Settings, make_page, run

SMALL = Settings(
    num_arms=12,
    width=2.0,
    centres=(2, 5, 8),
    coverages=(0.5, 1.0),
    step_sizes=(1.0, 30.0),
    last_step=100,
    steps_per_decade=3,
    batch=80,
    methods=("forward_kl", "reverse_kl", "best_of_n", "dpo", "ipo", "rlhf"),
)


@pytest.fixture(scope="session")
def settings():
    return SMALL


@pytest.fixture(scope="session")
def dataset():
    return run(SMALL)


@pytest.fixture(scope="session")
def page(dataset):
    return make_page(dataset)
