"""torchdiffeq's functions on our solvers: change the import, and the code runs.

torchdiffeq itself is not needed::

    from implicitcore.compat.torchdiffeq import odeint, odeint_adjoint, odeint_event

Signatures, shapes, options and meanings are torchdiffeq's: y0 is one system of any shape with one
step size, also where its first dimension is a batch. :func:`implicitcore.integrate` chooses steps
for each sample of a batch, says how each ended, and is the better tool in new code. Each step is
one of our solvers', so any registered ODE solver is a method too, with every option. What differs:

* ``dopri8`` is our ``dop853``. Between their steps the methods use continuous extensions of their
  own, and a method whose last stage is not the velocity at the end evaluates that.
* The Adams methods take their weights from the grid as it is: their order holds on uneven ones.
* A failed integration raises :class:`~implicitcore.SolveError` that is an ``AssertionError`` too.
* rtol is at least the precision of y0.
* The gradient of ``odeint_adjoint`` reaches all that ``func`` depends on, whether or not
  ``adjoint_params`` names it, and ``func`` need not be a module. What is not named does not steer
  the steps. Its event time has the gradient that ``odeint_event`` gives.
* An event is found on steps of their own, to the precision of the clock; the gradient with respect
  to it is a first derivative.
"""

from __future__ import annotations

from implicitcore.compat.torchdiffeq.functions import (
    odeint,
    odeint_adjoint,
    odeint_dense,
    odeint_event,
)

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
