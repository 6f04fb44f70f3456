"""Sweeps whose last bits depend on how they are computed; children of `forking` import this."""

import asyncio
import hashlib
import signal
import time

import distributed
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from bandits.losses import reverse_kl
from bandits.sweeps import static, store, sweep
from bandits.sweeps.cluster import connect
from bandits.sweeps.stored import stored_sweep
from bandits.training.descent import descend

__all__ = ["DESCENTS", "connect", "descents", "digests", "dim_names", "distributed", "into", "jax"]
__all__ += ["light", "np", "signal", "slow", "store", "stored", "stored_sweep", "sweep", "time"]
__all__ += ["work", "xr"]

DESCENTS = {
    "rate": np.geomspace(0.01, 3, 25),
    "steps": static([20]),
    "tilt": np.linspace(-1, 1, 20),
}
LIGHT = {
    "rate": np.geomspace(0.01, 3, 40),
    "power": static([1, 2]),
    "tilt": np.linspace(-1, 1, 25),
}
dim_names = {"dims": ["step", "arm"]}


def descents(rate, tilt, steps):
    """Descents on a divergence of 37 arms."""
    start = jax.nn.log_softmax(jnp.cos(jnp.arange(37.0)))
    target = jax.nn.log_softmax(jnp.sin(jnp.arange(37.0) * 2))
    log_probs = descend(reverse_kl, start, target, rate, (3, steps))
    return {"log_probs": log_probs * jnp.exp(tilt), "entropy": jnp.exp(log_probs).std(axis=-1)}


def light(rate, tilt, power):
    """What compiles fast."""
    probs = jax.nn.softmax(rate * jnp.sin(jnp.arange(37.0)) ** power + tilt)
    return {"probs": probs, "spread": probs.std()}


def into(path, **options):
    """The descents, to be stored."""
    return stored_sweep(
        descents, DESCENTS, path, identity={"name": "descents"}, **dim_names, **options
    )


def stored(path, **options):
    """The light runs, to be stored."""
    return stored_sweep(light, LIGHT, path, identity={"name": "light"}, dims=["arm"], **options)


def digests(dataset):
    """SHA-256 of every result, of the dataset or the store at a path."""
    held = xr.open_zarr(dataset) if isinstance(dataset, str) else dataset
    return {
        name: hashlib.sha256(np.ascontiguousarray(v.values).tobytes()).hexdigest()
        for name, v in held.data_vars.items()
    }


def slow(seconds):
    """Take this long over every chunk that is written."""
    write = store.Store.write

    def dawdle(self, chunk, values):
        write(self, chunk, values)
        time.sleep(seconds)

    store.Store.write = dawdle


def work(scheduler):
    """Be a worker of a cluster until it ends."""

    async def until_the_end():
        worker = await distributed.Worker(scheduler, nthreads=1, dashboard_address=None)
        await worker.finished()

    asyncio.run(until_the_end())
