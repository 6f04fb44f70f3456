"""Tell XLA's compiler for CPUs what it should do, and say why."""

import importlib.metadata
import os
import re

import jax

Options = dict[str, str | bool]
"""Options of XLA's compiler, by name."""

IN_ONE_THREAD: Options = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}
"""Compile kernels that keep to the thread of their lane, whatever passes ``XLA_FLAGS`` disable."""

VECTORS = "xla_cpu_prefer_vector_width"
IN_WIDE_VECTORS: Options = {VECTORS: "512"}
"""Fill the widest vectors that a CPU has; by itself XLA keeps to 256 bits.

A CPU without them is not slowed. The last bits of some results differ, as they do between CPUs.
"""

YNNPACK = "xla_cpu_experimental_ynn_fusion_type"
WITHOUT_YNNPACK: Options = {YNNPACK: ""}
"""Let XLA compile sums and products itself, and leave none to YNNPACK, whatever ``XLA_FLAGS`` say.

With YNNPACK jaxlib 0.10.2 gives wrong sums over products of large arrays
(https://github.com/jax-ml/jax/issues/39103), and a program that trains a network, loaded from the
persistent cache, gave NaN from the start in one case of seventy.
"""

WITH_YNNPACK = (0, 10, 2)
"""The first jaxlib with these faults; earlier ones need not know the option."""


def compiler_options(
    device: jax.Device, *, in_one_thread: bool = True, in_wide_vectors: bool = True
) -> Options | None:
    """Return what to compile with on a CPU, without YNNPACK; None, JAX's choice, on other devices.

    Args:
      device: The device.
      in_one_thread: Whether kernels keep to one thread, as several lanes need it.
      in_wide_vectors: Whether they fill the widest vectors, unless ``XLA_FLAGS`` set the width.
    """
    if device.platform != "cpu":
        return None
    said = VECTORS in os.environ.get("XLA_FLAGS", "")
    wide = IN_WIDE_VECTORS if in_wide_vectors and not said else {}
    own = WITHOUT_YNNPACK if _has_ynnpack() else {}
    return wide | own | (IN_ONE_THREAD if in_one_thread else {})


def avoid_ynnpack() -> None:
    """Let this process, and those it starts, compile everything without YNNPACK.

    Call it before JAX looks for devices. What ``XLA_FLAGS`` say of YNNPACK stays, and so does the
    name of a file, to which nothing can be added.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if _has_ynnpack() and YNNPACK not in flags and (not flags or flags.startswith("-")):
        os.environ["XLA_FLAGS"] = f"{flags} --{YNNPACK}=".strip()


def _has_ynnpack() -> bool:
    numbers = re.findall(r"\d+", importlib.metadata.version("jaxlib"))
    return tuple(map(int, numbers[:3])) >= WITH_YNNPACK
