"""Equilibria in JAX: one jitted function that solves z = f(z), and the adjoint equation by the same
solver of the same library, in a rule of its own for the gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.jax_worker.cells import Array, Cell
from benchmarks.jax_worker.libraries import jax, jaxopt, jnp, optimistix

Function = Callable[[Array], Array]
Root = Callable[[Function, Array, float, int], Array]
"""Of g, a start, a tolerance and a budget."""


def picard(g: Function, z: Array, tol: float, budget: int) -> Array:
    """The loop by hand: the worst sample's relative residual, as in the other plain loops."""

    def goes_on(state: tuple[Array, Array, Array]) -> Array:
        return (state[1] < budget) & ~state[2]

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        z, k, _ = state
        gz = g(z)
        return gz, k + 1, (_norms(gz - z) <= tol * _norms(gz)).all()

    return jax.lax.while_loop(goes_on, step, (z, 0, jnp.array(False)))[0]


def _norms(z: Array) -> Array:
    return jnp.linalg.norm(z.reshape(len(z), -1), axis=1)


def _jaxopt(kind: str, g: Function, z: Array, tol: float, budget: int) -> Array:
    # Nothing differentiates through the loop, which is unrolled otherwise, to its last iteration.
    loop = {"maxiter": budget, "tol": tol, "implicit_diff": False, "unroll": False}
    return getattr(jaxopt, kind)(g, **loop).run(z).params


def _optimistix(g: Function, z: Array, tol: float, budget: int) -> Array:
    solver = optimistix.FixedPointIteration(rtol=0.0, atol=tol, norm=optimistix.two_norm)
    found = optimistix.fixed_point(lambda z, _: g(z), solver, z, max_steps=budget, throw=False)
    return found.value


ROOTS: dict[tuple[str, str], Root] = {
    ("jax", "picard"): picard,
    ("jaxopt", "picard"): partial(_jaxopt, "FixedPointIteration"),
    ("jaxopt", "anderson"): partial(_jaxopt, "AndersonAcceleration"),
    ("optimistix", "picard"): _optimistix,
}
ABSOLUTE = ("jaxopt", "optimistix")
"""Their tolerances bound the absolute residual of what they solve: a sample, under ``vmap``."""


class Equilibrium:
    """The step of one contender: ``[params, x, z0, v] -> z, gradients of params and x``.

    Arguments:
        f: on the batch.
        root: the solver.
        tol: relative, of the worst sample.
        budget: the most iterations.
    """

    def __init__(self, f: Cell, root: Root, tol: float, budget: int) -> None:
        self.f, self.root, self.budget = f, root, budget
        self.single: Cell | None = None
        self.tols = tol, tol

    def one_by_one(self, single: Cell, z: Array, u: Array) -> Equilibrium:
        """By a solver that takes each sample by itself, to an absolute tolerance: that of the
        smallest sample of the solutions."""
        self.single = single
        self.tols = self.tols[0] * float(_norms(z).min()), self.tols[1] * float(_norms(u).min())
        return self

    def __call__(self, p: Any, x: Any, z0: Array, v: Array) -> Any:
        z, u, pull = self.solve(p, x, z0, v)
        return z, *pull(u)[:2]

    def solve(self, p: Any, x: Any, z0: Array, v: Array) -> tuple[Array, Array, Any]:
        """The equilibrium after one more evaluation, the adjoint, and the products with f there."""
        tols, single = self.tols, self.single
        if single is None:
            z = self.root(partial(self.f, p, x), z0, tols[0], self.budget)
            fz, pull = jax.vjp(self.f, p, x, z)
            return fz, self.root(lambda u: pull(u)[2] + v, v, tols[1], self.budget), pull

        def forward(x: Any, z: Array) -> Array:
            return self.root(partial(single, p, x), z, tols[0], self.budget)

        def adjoint(x: Any, z: Array, v: Array) -> Array:
            pull = jax.vjp(partial(single, p, x), z)[1]
            return self.root(lambda u: pull(u)[0] + v, v, tols[1], self.budget)

        z = jax.vmap(forward)(x, z0)
        fz, pull = jax.vjp(self.f, p, x, z)
        return fz, jax.vmap(adjoint)(x, z, v), pull
