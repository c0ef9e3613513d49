"""The fields of work against precision in JAX, and their integration by diffrax."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.jax_worker.libraries import diffrax, jax, jnp, np

Array = Any
Field = Callable[[Mapping[str, Array], Array], Array]
"""Of the tensors that it is made of, and a sample."""
SOLVERS = {"tsit5": "Tsit5", "dopri5": "Dopri5", "dopri8": "Dopri8", "kvaerno5": "Kvaerno5"}


def _predators(p: Mapping[str, Array], z: Array) -> Array:
    prey, hunters = z
    return jnp.stack((1.5 * prey - prey * hunters, prey * hunters - 3 * hunters))


def _oscillator(p: Mapping[str, Array], z: Array) -> Array:
    x, y = z
    return jnp.stack((y, p["mu"] * (1 - x * x) * y - x))


def _kinetics(p: Mapping[str, Array], z: Array) -> Array:
    a, b, c = z
    slow, middle, fast = 0.04 * a, 1e4 * b * c, 3e7 * b * b
    return jnp.stack((middle - slow, slow - middle - fast, fast))


def _perceptron(p: Mapping[str, Array], z: Array) -> Array:
    return jnp.tanh(z @ p["inner"].T) @ p["outer"].T


FIELDS: dict[str, Field] = {
    "predators": _predators,
    "oscillator": _oscillator,
    "kinetics": _kinetics,
    "perceptron": _perceptron,
}


class Precision:
    """The last state of a batch from t = 0 to ``end``, each sample with its own steps, in float64.

    Arguments:
        request: ``data``, the file of z0 and of the field's tensors; ``field``, ``method``,
            ``end`` and ``budget``.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        jax.config.update("jax_enable_x64", True)
        self.request = request
        with np.load(request["data"]) as data:
            self.tensors = {name: jnp.asarray(value) for name, value in data.items()}
        self.z0 = self.tensors.pop("z0")
        batched = jax.vmap(self._integrated, in_axes=(0, None))
        self.call = jax.jit(batched).lower(self.z0, (1e-3, 1e-3)).compile()

    def _integrated(self, z: Array, tols: tuple[Array, Array]) -> Array:
        field = FIELDS[self.request["field"]]
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, z, p: field(p, z)),
            getattr(diffrax, SOLVERS[self.request["method"]])(),
            0.0,
            self.request["end"],
            None,
            z,
            self.tensors,
            stepsize_controller=diffrax.PIDController(*tols),
            max_steps=self.request["budget"],
            throw=False,
        )
        return found.ys[-1]

    def save(self, path: str, rtol: float, atol: float) -> None:
        """Write the last state."""
        np.savez(path, z=self.call(self.z0, (rtol, atol)))

    def seconds(self, calls: int, rtol: float, atol: float) -> dict[str, float]:
        """Processor time of one call, as the mean of so many in a row."""
        begin = time.process_time()
        for _ in range(calls):
            jax.block_until_ready(self.call(self.z0, (rtol, atol)))
        return {"seconds": (time.process_time() - begin) / calls}
