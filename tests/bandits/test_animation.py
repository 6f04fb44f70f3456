"""Moving pictures as files: each kind, without a network, and without ffmpeg."""

import re
import shutil
import subprocess

import pytest
from PIL import Image

from bandits import animation, plotting
from bandits.animation import Frames
from bandits.studies import STUDIES
from theory.checks import InvalidInput


@pytest.fixture
def frames():
    figure = plotting.new_figure(3, 2.01)  # an odd number of pixels
    axes = figure.subplots()
    (line,) = axes.plot([0, 1], [0, 0])
    axes.set_ylim(0, 5)
    return Frames(figure, lambda i: line.set_ydata([0, i + 1]), 4)


def test_a_page_has_every_frame_and_its_controls_and_needs_no_network(frames, tmp_path):
    path = tmp_path / "a.html"
    animation.save(frames, path, "what it shows")
    page = path.read_text("utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "<title>what it shows</title>" in page
    assert len(re.findall(r"frames\[\d+\] = \"data:image/png;base64,", page)) == 4
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    assert 'class="fa' not in page
    for sign in animation.SIGNS.values():
        assert sign in page


def test_a_gif_moves_and_rests_on_its_last_frame(frames, tmp_path):
    path = tmp_path / "a.gif"
    animation.save(frames, path, "title", frames_per_second=10)
    with Image.open(path) as gif:
        seen, lasts = [], []
        for i in range(gif.n_frames):
            gif.seek(i)
            seen.append(gif.convert("RGB").tobytes())
            lasts.append(gif.info["duration"])
        assert gif.info["loop"] == 0
    assert len(set(seen)) == 4
    assert sum(lasts) == pytest.approx(1000 * (4 / 10 + animation.LAST_SECONDS), abs=20)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg here to make a film")
def test_a_film_is_what_browsers_play(frames, tmp_path):
    path = tmp_path / "a.mp4"
    animation.save(frames, path, "title")
    said = subprocess.run(
        ["ffmpeg", "-hide_banner", "-i", path], capture_output=True, text=True, check=False
    ).stderr
    assert "h264" in said
    assert "yuv420p" in said


@pytest.mark.parametrize("present", [False, True])
def test_without_an_ffmpeg_that_works_a_film_is_a_gif_beside_it(tmp_path, monkeypatch, present):
    ffmpeg = tmp_path / "bin" / "ffmpeg"
    ffmpeg.parent.mkdir()
    if present:
        ffmpeg.write_text("#!/bin/sh\nexit 1\n")
        ffmpeg.chmod(0o755)
    monkeypatch.setenv("PATH", str(ffmpeg.parent))
    with pytest.warns(UserWarning, match=r"no ffmpeg here can make .*a.mp4; writing .*a.gif"):
        assert animation.choose_file(tmp_path / "a.mp4") == tmp_path / "a.gif"
    assert animation.choose_file(tmp_path / "a.html") == tmp_path / "a.html"


@pytest.mark.parametrize("name", ["a.webm", "a", "a.png"])
def test_another_kind_of_file_is_refused(tmp_path, name):
    with pytest.raises(InvalidInput, match=r"must end in .html, .gif or .mp4"):
        animation.choose_file(tmp_path / name)


def test_three_studies_move():
    moving = {name for name, study in STUDIES.items() if study.animate}
    assert moving == {"mode_seeking", "simplex_paths", "displacement"}
