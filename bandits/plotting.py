"""Give every figure one look: large fonts, and a colour for each method, colour-blind safe."""

import functools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike
from PIL import Image

from bandits.losses import METHODS

# The first of a family are from Okabe and Ito's palette, the others from Paul Tol's: distinct under
# the common colour-vision deficiencies, and told apart by the family's line where they are close.
METHOD_COLORS = {name: method.color for name, method in METHODS.items()}
METHOD_LABELS = {name: method.label for name, method in METHODS.items()}
_FAMILY_LINES = {"divergence": "-", "likelihood": "-", "contrastive": "--", "policy gradient": "-."}
METHOD_LINES = {
    name: ":" if name.startswith("online") else _FAMILY_LINES[method.family]
    for name, method in METHODS.items()
}
"""A line a family, dotted for its online forms, so that close colours are not confused."""

RAISED, PUSHED = "#0072B2", "#D55E00"
"""Responses with a positive and a negative weight."""

TARGET_COLOR = "#BBBBBB"
INK = "#222222"

FORWARD_TO_REVERSE = LinearSegmentedColormap.from_list(
    "forward_to_reverse", [METHOD_COLORS["forward_kl"], "#F2F2F2", METHOD_COLORS["reverse_kl"]]
)
"""Blue where forward KL wins, vermilion where reverse KL does."""

EDGE = 0.05
"""White, in inches, around what stands outside a figure's edges."""

LONGEST_NAME = 32
"""Most characters of a name in a picture."""

_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans CJK KR", "Noto Sans JP", "Noto Sans SC",
    "Source Han Sans", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Hiragino Sans", "PingFang SC",
    "Apple SD Gothic Neo", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS",
)  # fmt: skip
"""Fonts of East Asian letters, which Matplotlib's own font lacks; used where they are installed."""

_STYLE: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.labelsize": 13,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "lines.linewidth": 2.4,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "pdf.fonttype": 42,  # letters that can be searched and edited
    "figure.dpi": 100,
    "savefig.dpi": 125,
    "image.composite_image": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw inside this, so that figures look alike and nothing global is left changed."""
    with mpl.rc_context(_STYLE | {"font.family": _families()}):
        yield


@functools.cache
def _families() -> list[str]:
    """Return Matplotlib's own font and, after it, those of `_FONTS` that are installed."""
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _FONTS if name in installed)]


@functools.cache
def _can_draw(letter: str) -> bool:
    paths = (font_manager.findfont(name) for name in _families())
    return any(font_manager.get_font(path).get_char_index(ord(letter)) for path in paths)


def short_names(labels: Iterable[object]) -> list[str]:
    """Return the labels as one short line each, all different: what a picture has room for.

    The middle of a long label gives way to "…". Letters that no installed font has are left out
    with a warning; a label of nothing else is called by its number, from 0.
    """
    texts = [" ".join(str(label).split()) for label in labels]
    names = ["".join(filter(_can_draw, _cut(text))).strip() for text in texts]
    lost = 0
    for i, (name, text) in enumerate(zip(names, texts, strict=True)):
        lost += not all(map(_can_draw, _cut(text)))
        if any(map(str.isalnum, text)) and not any(map(str.isalnum, name)):
            names[i] = f"arm {i}"
    if lost:
        warnings.warn(
            f"no installed font has all letters of {lost:,} of the labels; the picture leaves "
            "them out",
            stacklevel=2,
        )
    count = Counter(names)
    return [f"{name} [{i}]" if count[name] > 1 else name for i, name in enumerate(names)]


def _cut(text: str) -> str:
    """Keep the ends: names of models differ at both."""
    if len(text) <= LONGEST_NAME:
        return text
    tail = LONGEST_NAME // 3
    return f"{text[: LONGEST_NAME - tail - 1]}…{text[-tail:]}"


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = None) -> Figure:
    """Return an empty figure, sized in inches, that needs no display.

    A constrained layout fits every label but takes seconds for many panels; a regular grid of them
    needs none.
    """
    return Figure(figsize=(width, height), layout=layout)


def new_grid(
    rows: int,
    columns: int,
    width: float,
    height: float,
    edges: tuple[float, float, float, float],
    wspace: float = 0.0,
    hspace: float = 0.0,
    **subplots: Any,
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its panels ``[rows, columns]``.

    Args:
      rows, columns: numbers of panels.
      width, height: of the figure, in inches.
      edges: left, bottom, right and top of the panels together, as shares of the figure.
      wspace, hspace: between panels, as shares of a panel.
      subplots: what else `Figure.subplots` takes; by default all share one vertical axis.
    """
    figure = new_figure(width, height)
    panels = figure.subplots(rows, columns, squeeze=False, **{"sharey": True, **subplots})
    figure.subplots_adjust(*edges, wspace, hspace)
    return figure, panels


def new_panels(
    count: int,
    width: float,
    row_height: float,
    margins: tuple[float, float, float, float],
    *,
    columns: int = 6,
    wspace: float = 0.08,
    hspace: float = 0.3,
    shared: bool = True,
    projection: str | None = None,
) -> tuple[Figure, list[Axes]]:
    """Return a figure and so many equal panels, in as many rows as they need.

    Args:
      count: number of panels.
      width, row_height: of the figure and of a row, in inches.
      margins: left, bottom, right and top, in inches.
      columns: panels in a row.
      wspace, hspace: between panels, as shares of a panel.
      shared: whether all share their axes; then only the outer panels are labelled.
      projection: of every panel, by its name in Matplotlib.
    """
    rows = -(-count // columns)
    left, bottom, right, top = margins
    height = rows * row_height + bottom + top
    edges = (left / width, bottom / height, 1 - right / width, 1 - top / height)
    figure, grid = new_grid(
        rows, columns, width, height, edges, wspace, hspace,
        sharex=shared, sharey=shared, subplot_kw={"projection": projection},
    )  # fmt: skip
    panels, spare = list(grid.flat[:count]), list(grid.flat[count:])
    for axes in spare:
        axes.axis("off")
    if shared:
        for axes in panels[-columns:]:
            axes.tick_params(labelbottom=True)
    return figure, panels


def save(figure: Figure, *paths: Path) -> None:
    """Write the figure; the formats follow from the names. The same figure is the same file.

    What stands outside the figure's edges is not cut off: the picture grows by it.
    """
    with style():
        drawn = _drawn(figure)
        layout = figure.get_layout_engine()
        figure.set_layout_engine("none")  # it is laid out, and once is enough
        whole = Bbox.union([figure.bbox_inches, drawn.padded(EDGE)])
        box = None if _is_inside(drawn, figure) else whole
        for path in paths:
            if path.suffix == ".png":
                _save_palette(figure, path, box)
            elif path.suffix == ".pdf" and box is None:  # `savefig` draws everything twice
                with _resolution(figure, 72):
                    FigureCanvasPdf(figure).print_pdf(path, metadata={"CreationDate": None})
            else:
                figure.savefig(path, metadata={"CreationDate": None}, bbox_inches=box)
        figure.set_layout_engine(layout)


def overflow(figure: Figure) -> tuple[float, float, float, float]:
    """Return how far what is drawn passes the edges: left, bottom, right, top, in inches.

    Negative numbers are room that is left.
    """
    with style():
        drawn, (width, height) = _drawn(figure), figure.get_size_inches()
    return -drawn.x0, -drawn.y0, drawn.x1 - width, drawn.y1 - height


def _drawn(figure: Figure) -> Bbox:
    """Lay the figure out as it will be saved; return the box, in inches, around all it draws."""
    layout = figure.get_layout_engine()
    # Letters are up to a tenth wider at some resolutions.
    with _resolution(figure, mpl.rcParams["savefig.dpi"]):
        if layout is not None:
            layout.execute(figure)
        box = figure.get_tightbbox()
        if layout is not None and not _is_inside(box, figure):
            layout.execute(figure)  # long labels find their room in the second pass
            box = figure.get_tightbbox()
        return box


@contextmanager
def _resolution(figure: Figure, dpi: float) -> Iterator[None]:
    before, figure.dpi = figure.dpi, dpi
    try:
        yield
    finally:
        figure.dpi = before


def _is_inside(box: Bbox, figure: Figure) -> bool:
    return all(figure.bbox_inches.contains(x, y) for x, y in box.corners())


def _save_palette(figure: Figure, path: Path, box: Bbox | None) -> None:
    """Write a PNG of 256 colours: a third of the size of one of all colours."""
    if box is None:
        with _resolution(figure, mpl.rcParams["savefig.dpi"]):
            canvas = FigureCanvasAgg(figure)
            canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    else:
        buffer = BytesIO()
        figure.savefig(buffer, format="png", bbox_inches=box)
        picture = Image.open(buffer)
    palette = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette.save(path, format="PNG", optimize=True)


def draw_band(axes: Axes, x: ArrayLike, samples: np.ndarray, method: str) -> None:
    """Draw the median of ``samples [n, len(x)]`` as a line, and their middle 80% as a band."""
    low, middle, high = np.quantile(samples, [0.1, 0.5, 0.9], axis=0)
    color, x = METHOD_COLORS[method], np.asarray(x)
    axes.plot(x, middle, color=color, label=METHOD_LABELS[method])
    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
