"""Files out: results appear whole or not at all."""

import os

import pytest

from bandits.files import make_folder, whole_file
from theory.checks import InvalidInput


def test_a_whole_file_replaces_its_target_only_when_complete(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("old")
    with whole_file(path) as part:
        part.write_text("new")
        assert part.parent == tmp_path
        assert part.suffix == ".txt"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["data.txt"]


def test_a_reader_of_the_old_file_never_sees_a_part_of_the_new_one(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("old")
    with path.open() as reader:
        with whole_file(path) as part:
            part.write_text("new")
        assert reader.read() == "old"


def test_a_whole_file_has_the_permissions_of_an_ordinary_one(tmp_path):
    with whole_file(tmp_path / "whole"):
        pass
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path, error, exists):
    path = tmp_path / "data.txt"
    if exists:
        path.write_text("old")

    def fail():
        with whole_file(path) as part:
            part.write_text("half")
            raise error("no more")

    with pytest.raises(InvalidInput if error is OSError else error):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"] * exists


def test_a_file_that_cannot_be_written_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InvalidInput, match=r"cannot write .*taken"), whole_file(tmp_path / "taken"):
        pass
    assert os.listdir(tmp_path) == ["taken"]
    missing = tmp_path / "missing" / "data.txt"
    with pytest.raises(InvalidInput, match=r"cannot write .*missing"), whole_file(missing):
        pass


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidInput, match=f"cannot write to the folder {path}: .*choose"):
            make_folder(path)
    assert (tmp_path / "file").read_text() == "kept"
