"""Trajectories by diffrax, from t = 0 to 1: each sample with its own steps (``vmap``, as its users
write it), or the batch as one state."""

from __future__ import annotations

from typing import Any

from benchmarks.jax_worker.cells import Array, Cell
from benchmarks.jax_worker.libraries import diffrax, jax

JOINT = "joint"


class Trajectory:
    """The step: ``[params, x, z0, v] -> z, gradients of params, x and z0``.

    Arguments:
        single: f of a sample; None where the batch is one state.
        batch: f on the batch.
        method: ``dopri5`` or ``tsit5``, and what follows a comma.
        gradient: ``checkpointed`` (diffrax's default) or ``adjoint``.
        tol: relative and absolute, of a step.
        budget: the most steps.
    """

    def __init__(  # noqa: PLR0913 - what a row says
        self,
        single: Cell | None,
        batch: Cell,
        method: str,
        gradient: str,
        tol: float,
        budget: int,
    ) -> None:
        self.single, self.batch, self.tol, self.budget = single, batch, tol, budget
        self.solver = {"dopri5": "Dopri5", "tsit5": "Tsit5"}[method.partition(", ")[0]]
        self.adjoint = {
            "checkpointed": "RecursiveCheckpointAdjoint",
            "adjoint": "BacksolveAdjoint",
        }[gradient]

    def __call__(self, p: Any, x: Any, z0: Array, v: Array) -> Any:
        z, pull = jax.vjp(self.end, p, x, z0)
        return z, *pull(v)

    def end(self, p: Any, x: Any, z0: Array) -> Array:
        """The last state."""
        single = self.single
        if single is None:
            return self._integrated(self.batch, p, x, z0)
        return jax.vmap(lambda x, z: self._integrated(single, p, x, z))(x, z0)

    def _integrated(self, f: Cell, p: Any, x: Any, z0: Array) -> Array:
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, z, given: f(given[0], given[1], z)),
            getattr(diffrax, self.solver)(),
            0.0,
            1.0,
            None,
            z0,
            (p, x),
            stepsize_controller=diffrax.PIDController(rtol=self.tol, atol=self.tol),
            adjoint=getattr(diffrax, self.adjoint)(),
            max_steps=self.budget,
            throw=False,
        )
        return found.ys[-1]
