"""What every study of the gallery must hold, at quick scale."""

import dataclasses
import json

import pytest

from bandits.studies import STUDIES


@pytest.fixture(params=STUDIES)
def name(request):
    return request.param


def settings(study):
    """Return what it takes at full and at quick scale, as JSON takes it."""
    scales = study(), study(**study.quick)
    return [json.loads(json.dumps(dataclasses.asdict(scale))) for scale in scales]


def test_it_says_what_it_is_and_quick_settings_are_others(name):
    study = STUDIES[name]
    assert study.name == name
    assert study.source
    assert study.question.endswith("?")
    full, quick = settings(study)
    assert full.keys() == quick.keys()
    assert full != quick


def test_full_settings_are_of_the_published_scale():
    full = {name: settings(study)[0] for name, study in STUDIES.items()}
    assert full["mode_seeking"]["last_step"] >= 100
    assert full["mass_relocation"]["instances"] >= 10**5
    sweep = full["learning_rate_sweep"]
    assert sweep["starts"] == 64
    assert sweep["most_learning_rate"] / sweep["least_learning_rate"] == pytest.approx(10**4)
    assert 2 * sweep["starts"] * sweep["learning_rates"] >= 10**4


def test_a_quick_run_says_its_settings_and_is_a_file(name, measured):
    study, dataset = STUDIES[name], measured(name)
    assert (dataset.attrs["study"], dataset.attrs["scale"]) == (name, "quick")
    assert dataset.attrs["source"] == study.source
    assert json.loads(dataset.attrs["settings"]) == settings(study)[1]
    assert dataset.to_netcdf(engine="scipy")


def test_a_quick_run_has_claims_that_are_not_vouched_for(name, measured):
    study = STUDIES[name]
    claims = study.claims(measured(name))
    assert claims
    for claim in claims:
        assert (claim.study, claim.source, claim.asserted) == (name, study.source, False)
        assert claim.statement == claim.statement.strip()
        assert not claim.statement.endswith(".")
        assert claim.low <= claim.effect <= claim.high
        json.dumps(dataclasses.asdict(claim))


def test_a_quick_run_is_drawn_and_moves_where_it_can(name, measured):
    study, dataset = STUDIES[name], measured(name)
    figure = study.draw(dataset)  # no label passes its edges: see conftest
    assert any(axes.has_data() for axes in figure.axes)
    if study.animate:
        frames = study.film(dataset)
        assert frames.number > 1
        frames.draw(frames.number - 1)
        frames.figure.draw_without_rendering()
