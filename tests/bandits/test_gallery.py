"""The page of all figures: everything a reader asks of one, and links that lead somewhere."""

import dataclasses
import re

from bandits.gallery import make_page
from bandits.studies import STUDIES, Claim


def claim(**changes):
    plain = Claim("mode_seeking", "T24", "KL(p||q) is small", 0.123456, 0.1, 0.2, holds=True)
    return dataclasses.replace(plain, **changes)


def page(folder, *claims, name="mode_seeking"):
    return make_page([(STUDIES[name], list(claims))], folder)


def test_it_shows_every_study_with_picture_question_source_command_and_code(tmp_path):
    text = make_page([(one, []) for one in STUDIES.values()], tmp_path)
    for name, study in STUDIES.items():
        assert f"- [{name}](#{name}): {study.question}\n" in text
        assert f"## {name}\n" in text
        assert f"]({name}.png)" in text
        assert f"*{study.source}.*" in text
        assert f"\nmodeseek figures {name}\nmodeseek claims {name}\n" in text
        assert (f"modeseek animate {name} " in text) == bool(study.animate)
    links = re.findall(r"\[Code\]\((.*?)\)", text)
    assert len(links) == len(STUDIES)
    assert all((tmp_path / link).resolve().is_file() for link in links)


def test_a_claim_is_a_row_whose_bars_do_not_end_its_cells(tmp_path):
    rows = page(tmp_path, claim()).splitlines()
    assert rows[-1] == "| yes | KL(p\\|\\|q) is small | 0.1235 | 0.1 to 0.2 |"


def test_what_does_not_hold_stands_out_where_the_project_vouches_for_it(tmp_path):
    failed, open_ = claim(holds=False, note="From 3."), claim(holds=False, asserted=False)
    rows = page(tmp_path, failed, open_).splitlines()[-2:]
    assert rows[0].startswith("| **no** | KL(p\\|\\|q) is small. *From 3.* |")
    assert rows[1].startswith("| no, not asserted |")
