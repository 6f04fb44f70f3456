"""Write moving pictures: a figure, and a function that brings it to each frame."""

import re
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.animation import AbstractMovieWriter, FFMpegWriter, HTMLWriter, PillowWriter
from matplotlib.figure import Figure

from bandits import plotting
from theory.checks import InvalidInput

DPI = 80
"""Pixels in an inch: a figure of 12 inches fills a slide of 960 pixels."""

CODEC = "h264"
"""The codec of films, which every browser plays."""

SUFFIXES = (".html", ".gif", ".mp4")

LAST_SECONDS = 1.5
"""How long the last frame stands before the picture begins anew."""

# Matplotlib's page takes the signs of its buttons from a font on the network. Every font has these.
SIGNS = {
    "minus": "−",
    "fast-backward": "«",
    "step-backward": "‹",
    "play fa-flip-horizontal": "◀",
    "pause": "❚❚",
    "play": "▶",
    "step-forward": "›",
    "fast-forward": "»",
    "plus": "+",
}
HEAD = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>img {{ max-width: 100%; }} body {{ text-align: center; font-family: sans-serif; }}</style>
"""


class Frames(NamedTuple):
    """Hold a figure that moves."""

    figure: Figure  # with everything in it that stands still
    draw: Callable[[int], None]  # brings the figure to the given frame, from 0
    number: int  # of frames


def choose_file(path: Path) -> Path:
    """Return the file to write: ``path``, or a GIF beside it where a film cannot be made.

    Raises:
      InvalidInput: For a name that ends otherwise than `SUFFIXES`.
    """
    if path.suffix not in SUFFIXES:
        raise InvalidInput(f"{path} is no moving picture; its name must end in .html, .gif or .mp4")
    if path.suffix == ".mp4" and not _makes_films():
        other = path.with_suffix(".gif")
        warnings.warn(f"no ffmpeg here can make {path}; writing {other}", stacklevel=2)
        return other
    return path


def _makes_films() -> bool:
    """Return whether ffmpeg is there and knows the codec."""
    try:
        made = subprocess.run(
            ["ffmpeg", "-v", "quiet", "-f", "lavfi", "-i", "color=size=64x64:duration=0.1",
             "-c:v", CODEC, "-f", "null", "-"],
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except OSError:
        return False
    return made.returncode == 0


def save(frames: Frames, path: Path, title: str, frames_per_second: int = 12) -> None:
    """Write ``.html`` with buttons and a slider, ``.gif``, or ``.mp4`` with ffmpeg's help."""
    writer = _writer(path.suffix, frames_per_second)
    with (
        plotting.style(),
        mpl.rc_context({"animation.embed_limit": 100}),
        writer.saving(frames.figure, str(path), DPI),
    ):
        for i in range(frames.number):
            frames.draw(i)
            writer.grab_frame()
        if path.suffix != ".html":  # there the reader stops it
            for _ in range(round(LAST_SECONDS * frames_per_second)):
                writer.grab_frame()
    if path.suffix == ".html":
        path.write_text(HEAD.format(title=title) + _offline(path.read_text("utf-8")), "utf-8")


def _writer(suffix: str, frames_per_second: int) -> AbstractMovieWriter:
    if suffix == ".html":
        return HTMLWriter(fps=frames_per_second, embed_frames=True, default_mode="once")
    if suffix == ".gif":
        return PillowWriter(fps=frames_per_second)
    # Its height and width must be even.
    return FFMpegWriter(
        fps=frames_per_second,
        codec=CODEC,
        extra_args=["-pix_fmt", "yuv420p", "-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2"],
    )


def _offline(page: str) -> str:
    """Return Matplotlib's page without what it takes from the network."""
    page = re.sub(r'<link rel="stylesheet"\s+href="http[^>]*>', "", page)
    return re.sub(r'<i class="fa fa-([a-z -]+)"></i>', lambda sign: SIGNS[sign[1]], page)
