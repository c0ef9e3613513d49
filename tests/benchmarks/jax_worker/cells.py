"""The problems' f in JAX, by the module and the class that they have in torch: of parameters and
buffers by their names there, of the tensors of x, and of z."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.jax_worker.libraries import jax, jnp, sparse

Array = Any
Arrays = Mapping[str, Array]
Cell = Callable[[Arrays, Sequence[Array], Array], Array]
HEADS = 4


def _affine(p: Arrays, name: str, z: Array) -> Array:
    return z @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def _convolved(z: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(z, kernel, (1, 1), "SAME")


def _dense(p: Arrays, x: Sequence[Array], z: Array) -> Array:
    return jnp.tanh(_affine(p, "linear", z) + x[0])


def _scaled(p: Arrays, x: Sequence[Array], z: Array) -> Array:
    return jnp.tanh(x[0] * _affine(p, "linear", z) + x[1])


def _conv(p: Arrays, x: Sequence[Array], z: Array) -> Array:
    return jnp.tanh(_convolved(z, p["conv.weight"]) + p["conv.bias"][:, None, None] + x[0])


def _transformer(p: Arrays, x: Sequence[Array], z: Array) -> Array:
    batch, tokens, features = z.shape
    parts = _affine(p, "projections", z).reshape(batch, tokens, 3, HEADS, features // HEADS)
    query, key, value = (parts[:, :, i] for i in range(3))
    mixed = jax.nn.dot_product_attention(query, key, value)
    out = _affine(p, "out", mixed.reshape(batch, tokens, features))
    return jnp.tanh(_affine(p, "linear", z) + out + x[0])


def _graph(p: Arrays, x: Sequence[Array], z: Array) -> Array:
    nodes = z.shape[1]
    adjacency = sparse.BCOO(
        (p["adjacency.values"], p["adjacency.indices"].T),
        shape=(nodes, nodes),
        indices_sorted=True,
        unique_indices=True,
    )
    return jnp.tanh((adjacency @ _affine(p, "linear", z[0]))[None] + x[0])


def _resolutions(p: Arrays, x: Sequence[Array], z: Array) -> Array:
    batch, entries = z.shape
    channels = p["up"].shape[0]
    side = round((entries * 4 / 5 / channels) ** 0.5)
    fine, coarse = jnp.split(z, [channels * side**2], 1)
    fine = fine.reshape(batch, channels, side, side)
    coarse = coarse.reshape(batch, channels, side // 2, side // 2)
    lifted = _convolved(coarse, p["up"]).repeat(2, 2).repeat(2, 3)
    halves = fine.reshape(batch, channels, side // 2, 2, side // 2, 2)
    pooled = _convolved(halves.mean((3, 5)), p["down"])
    maps = _convolved(fine, p["fine"]) + lifted, _convolved(coarse, p["coarse"]) + pooled
    return jnp.tanh(jnp.concatenate([part.reshape(batch, -1) for part in maps], 1) + x[0])


def _perceptron(p: Arrays, x: Sequence[Array], z: Array, name: str = "") -> Array:
    inner, outer, bias = (p[f"{name}{part}"] for part in ("inner", "outer", "bias"))
    return jnp.tanh(z @ inner.T + bias) @ outer.T


def _relaxation(p: Arrays, x: Sequence[Array], z: Array) -> Array:
    return x[0] * (_perceptron(p, (), z, "g.") - z)


def _conv_field(p: Arrays, x: Sequence[Array], z: Array) -> Array:
    return jnp.tanh(_convolved(z, p["kernel"])) - z


CELLS: dict[str, Cell] = {
    "root_problems.Dense": _dense,
    "root_problems.Scaled": _scaled,
    "root_problems.Conv": _conv,
    "root_problems.Transformer": _transformer,
    "root_problems.Graph": _graph,
    "root_problems.Resolutions": _resolutions,
    "ode_problems.Perceptron": _perceptron,
    "ode_problems.Relaxation": _relaxation,
    "ode_problems.Conv": _conv_field,
}


def of_one(f: Cell) -> Cell:
    """f of a single sample."""
    return lambda p, x, z: f(p, [part[None] for part in x], z[None])[0]


class Counts(dict[str, float]):
    """What a cell that :func:`counted` returns was spent on, in whole batches."""

    def __init__(self) -> None:
        super().__init__(plain=0.0, graphs=0.0, products=0.0)

    def add(self, name: str, share: float) -> None:
        self[name] += share


def counted(f: Cell, counts: Counts, share: float) -> Cell:
    """f that tells of its evaluations and products; under ``vmap`` each sample tells, of its
    ``share``."""

    def tell(name: str, z: Array) -> None:
        # An entry of z, for ``vmap`` calls back for each sample only what depends on the sample.
        jax.debug.callback(partial(_heard, counts, name, share), z.ravel()[0])

    @jax.custom_vjp
    def call(p: Arrays, x: Sequence[Array], z: Array) -> Array:
        tell("plain", z)
        return f(p, x, z)

    def forward(p: Arrays, x: Sequence[Array], z: Array) -> tuple[Array, Any]:
        tell("graphs", z)
        return jax.vjp(f, p, x, z)

    def backward(pull: Any, v: Array) -> Any:
        tell("products", v)
        return pull(v)

    call.defvjp(forward, backward)
    return call


def _heard(counts: Counts, name: str, share: float, _: Array) -> None:
    counts.add(name, share)
