"""Show pictures with sliders in notebooks, and without sliders where there can be none."""

import gc
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bandits import plotting
from theory.checks import InvalidInput, require_known

STATIC = "MODESEEK_STATIC"
"""The environment variable that asks for pictures without sliders, as notebooks are stored."""

DPI = 80
"""A picture of 12 inches is as wide as a notebook's page, and drawn in about 100 ms."""

FAST = {"compress_level": 1}
"""Options of the PNG: a smaller file would take half as long again."""


def explore(draw: Callable[..., Figure], **controls: Iterable[Any]) -> Any:
    """Return a picture that is drawn anew when a slider moves: end a notebook's cell with it.

    A control of numbers is a slider over them, one of names is a menu. Without controls, without
    ipywidgets, or with ``MODESEEK_STATIC`` set, the result is the picture of the first setting.

    Args:
      draw: keyword arguments -> figure, made by `plotting.new_figure`, in the project's style. Its
        defaults are the first setting.
      controls: the values of each argument that has a control, in their order.

    Raises:
      InvalidInput: For a control that ``draw`` has no default for, that has no values, or whose
        values do not hold the default.
    """
    choices = {name: list(values) for name, values in controls.items()}
    setting = {name: _first(draw, name, values) for name, values in choices.items()}

    def render(**values: Any) -> bytes:
        buffer = BytesIO()
        with plotting.style():
            draw(**values).savefig(buffer, format="png", dpi=DPI, pil_kwargs=FAST)
        return buffer.getvalue()

    picture = render(**setting)
    if not choices or os.environ.get(STATIC) or not find_spec("ipywidgets"):
        return Picture(picture, setting)
    import ipywidgets as widgets

    shown = widgets.Image(value=picture, format="png")
    handles = {name: _control(widgets, name, choices[name], setting[name]) for name in choices}

    def redraw(_: object) -> None:
        shown.value = render(**{name: handle.value for name, handle in handles.items()})

    for handle in handles.values():
        handle.observe(redraw, names="value")
    # Figures are cyclic garbage. To look for it through all that JAX holds would take half a second
    # whenever a slider moves. What is held now stays, so it need not be looked at again.
    gc.collect()
    gc.freeze()
    return widgets.VBox([*handles.values(), shown])


@dataclass(frozen=True, repr=False)
class Picture:
    """Hold a PNG as a notebook displays it, and say in words the setting that it shows."""

    png: bytes
    setting: Mapping[str, Any]

    def _repr_png_(self) -> bytes:
        return self.png

    def __repr__(self) -> str:
        if not self.setting:
            return "picture"
        said = ", ".join(f"{name} = {_show(value)}" for name, value in self.setting.items())
        return f"{said} (run this cell, with ipywidgets installed, to move them)"


def _first(draw: Callable[..., Figure], name: str, values: list[Any]) -> Any:
    """Return the value a control starts at: that of ``values`` which is the default of ``draw``."""
    parameters = inspect.signature(draw).parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    require_known("control", name, defaults)
    default = defaults[name]
    if not values:
        raise InvalidInput(f"control {name} has no values; give at least one")
    is_number = not isinstance(default, str)
    for value in values:
        if value == default or (is_number and np.isclose(value, default, rtol=1e-6)):
            return value
    raise InvalidInput(
        f"control {name} starts at {default!r}, which is not among its values: "
        f"{', '.join(map(_show, values))}"
    )


def _control(widgets: Any, name: str, values: list[Any], value: Any) -> Any:
    labelled = [(_show(one), one) for one in values]
    shared = {"options": labelled, "value": value, "description": name.replace("_", " ")}
    wide = {"style": {"description_width": "9em"}, "layout": {"width": "32em"}}
    if isinstance(values[0], str):
        return widgets.Dropdown(**shared, **wide)
    return widgets.SelectionSlider(**shared, **wide)


def _show(value: Any) -> str:
    if isinstance(value, str):
        return plotting.METHOD_LABELS.get(value, value)
    return f"{value:.3g}" if isinstance(value, float | np.floating) else str(value)
