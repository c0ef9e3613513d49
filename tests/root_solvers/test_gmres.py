"""GMRES in a graph: the gradient where its space holds the solution."""

import pytest
import torch

import implicitcore as ic
from implicitcore.testing.dense import relative_error


@pytest.mark.parametrize("n", [1, 2, 4, 6])
@pytest.mark.parametrize("solver", [ic.GMRES, ic.Newton], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_its_steps_where_the_space_is_whole(seed, solver, n):
    """The last entry of H is rounding there: two derivatives by it cancel, each as large as 1/eps.

    In float32 the gradient was off by up to 1e4 where z was right to 1e-6. What is left is that of
    the last step, the same in float64.
    """
    generator = torch.Generator().manual_seed(seed)
    weight, x, v = (torch.randn(k, n, generator=generator).double() for k in (n, 5, 5))
    weight = (0.9 * weight / torch.linalg.matrix_norm(weight, 2)).requires_grad_()
    x = x.requires_grad_()
    exact = torch.linalg.solve(torch.eye(n) - weight, x.T).T
    expected = torch.autograd.grad(exact, [weight, x], v)
    options = {"dense_below": 0} if solver is ic.Newton else {}
    given = [tensor.detach().float().requires_grad_() for tensor in (weight, x)]
    solution = ic.fixed_point(
        lambda z, x: z @ given[0].T + x,
        torch.zeros(5, n),
        given[1],
        solver=solver(tol=1e-6, **options),
        gradient=ic.Unrolled(),
        on_failure="ignore",  # which of them meets 1e-6 is rounding
    )
    found = torch.autograd.grad(solution.z, given, v.float())
    assert relative_error([solution.z.detach()], [exact.detach()]) < 1e-5
    assert relative_error(found, expected) < 1e-2
