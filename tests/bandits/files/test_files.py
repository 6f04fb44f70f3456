"""Files out: results appear whole or not at all."""

import os

import pytest

from bandits.files import make_folder, move_files, scratch_folder, whole_file, whole_files
from theory.checks import InvalidInput


def test_a_whole_file_replaces_its_target_only_when_complete(tmp_path):
    path, ordinary = tmp_path / "data.txt", tmp_path / "ordinary.txt"
    for each in (path, ordinary):
        each.write_text("old")
    with path.open() as reader:
        with whole_file(path) as part:
            part.write_text("new")
            assert (part.parent, part.suffix, path.read_text()) == (tmp_path, ".txt", "old")
        assert reader.read() == "old"  # a reader of the old file sees no part of the new one
    assert path.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["data.txt", "ordinary.txt"]
    assert path.stat().st_mode == ordinary.stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_write_leaves_the_folder_as_it_was(tmp_path, error, exists):
    path = tmp_path / "data.txt"
    if exists:
        path.write_text("old")

    def fail():
        with whole_files(tmp_path / "other.txt", path) as parts:
            parts[0].write_text("half")
            raise error("no more")

    with pytest.raises(InvalidInput if error is OSError else error):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"] * exists


@pytest.mark.parametrize("name", ["taken", "missing/data.txt"])
def test_a_file_that_cannot_be_written_is_refused_in_one_sentence(tmp_path, name):
    (tmp_path / "taken").mkdir()
    paths = tmp_path / "first", tmp_path / name
    with pytest.raises(InvalidInput, match=f"^cannot write .*{name}: "), whole_files(*paths):
        pass
    assert os.listdir(tmp_path) == ["taken"]


def test_files_move_from_a_scratch_folder_which_is_removed(tmp_path):
    with scratch_folder(tmp_path) as scratch:
        (scratch / "data").write_text("new")
        assert move_files([scratch / "data"], tmp_path) == [tmp_path / "data"]
    assert os.listdir(tmp_path) == ["data"]
    assert (tmp_path / "data").read_text() == "new"


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InvalidInput, match=f"cannot write to the folder .*{name}: .*choose"):
        make_folder(tmp_path / name)
    assert (tmp_path / "file").read_text() == "kept"
