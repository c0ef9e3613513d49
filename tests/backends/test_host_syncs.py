"""On an accelerator, a loop does not wait for the device in every step: counted without one."""

from __future__ import annotations

import pytest
import torch
from support.host_syncs import HostSyncs, all_accept

import implicitcore as ic

BATCH, N = 3, 8


def states(*shape):
    return torch.zeros(shape, device="meta")


def cell(z, x):
    return torch.tanh(z @ x)


def remaining(tensor):
    """Every sample goes on: the norms of residuals, and of f(z), are all one."""
    return torch.ones(tensor.shape, dtype=tensor.dtype)


def syncs_of_equilibrium(solver):
    with HostSyncs(remaining) as syncs, torch.no_grad():
        ic.fixed_point(
            cell, states(BATCH, N), ic.shared(states(N, N)), solver=solver, on_failure="ignore"
        )
    return syncs.counts


def syncs_of_trajectory(solver):
    with HostSyncs(all_accept(BATCH)) as syncs, torch.no_grad():
        field = lambda t, z, x: cell(z, x)  # noqa: E731
        ic.integrate(
            field,
            states(BATCH, N),
            ic.shared(states(N, N)),
            times=states(2),
            solver=solver,
            on_failure="ignore",
        )
    return syncs.counts


@pytest.mark.parametrize(
    "solver", [ic.Picard, ic.Anderson, ic.Broyden], ids=lambda solver: solver.__name__
)
def test_a_root_solver_waits_every_fourth_step(solver):
    some, more = (syncs_of_equilibrium(solver(max_steps=steps)) for steps in (21, 61))
    assert more - some == {"aten._to_copy": 10}


def test_an_ode_solver_waits_once_a_step():
    syncs_of_trajectory(ic.Tsit5(max_steps=2))  # the constants of the method are copied once
    some, more = (syncs_of_trajectory(ic.Tsit5(max_steps=steps)) for steps in (20, 60))
    assert (more - some).total() == 40


def test_each_kind_of_wait_is_counted():
    device, flag = states(3), states()
    with HostSyncs(lambda tensor: torch.ones(tensor.shape)) as syncs:
        assert flag
        device.new_tensor([1.0])
        torch.tensor(1.0, device="meta")
        device.copy_(torch.ones(3))
        torch.ones(3).to("meta")
        _ = torch.ones(3) + 1
    assert syncs.counts == {
        "aten._local_scalar_dense": 1,
        "new_tensor": 1,
        "tensor": 1,
        "aten.copy_": 1,
        "aten._to_copy": 1,
    }
