"""Whether the solve begins where something can be learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from implicitcore import SteadyState, spectral_radius
from implicitcore.extend import norm
from implicitcore_lab.diagnosis.record import Record
from implicitcore_lab.diagnosis.subject import Subject, times_of

STEEP = 30.0
"""A Jacobian at the start with a larger radius is that of a singular point."""

RATIO = 10.0
"""It is so many times that one step of the solve further on."""


def check_start(subject: Subject, record: Record) -> Subject:
    """Find a start that cannot be learned, from which the solve does not move, or that is singular.

    Of a learned start the gradient is asked for: where it is zero for all that the start puts out,
    no loss can move it.
    """
    _check_learned(subject, record)
    _check_moves(subject, record)
    _check_singular(subject, record)
    return subject


def _check_learned(subject: Subject, record: Record) -> None:
    learned = [it for it in subject.layer.start.parameters() if it.requires_grad]
    if not learned:
        return
    with torch.enable_grad():
        leaves = [it.real for it in pytree.tree_leaves(subject.layer.explicit(subject.x))]
        total = torch.stack([(leaf * torch.randn_like(leaf)).sum() for leaf in leaves]).sum()
        gradients = torch.autograd.grad(total, learned, allow_unused=True, materialize_grads=True)
    if any(bool(gradient.any()) for gradient in gradients):
        return
    name = type(subject.layer.start).__name__
    zeros = torch.cat([(leaf == 0).flatten() for leaf in leaves]).float().mean().item()
    record.find(
        "dead start",
        f"the gradient of z0 with respect to all {sum(it.numel() for it in learned)} parameters of "
        f"the start ({name}) is exactly 0, and {zeros:.0%} of z0 is 0",
        "No loss can move it: initialise it again, with a smaller learning rate or without a ReLU "
        "at its end",
    )


@torch.no_grad()
def _check_moves(subject: Subject, record: Record) -> None:
    """Find a start that is an equilibrium for every x: the solve takes no step."""
    state = subject.start()
    system = subject.system(state)
    z = system.packing.pack(state)
    size = norm(system.velocity(times_of(z), z))
    record.figures["start_residual"] = size.max().item()
    if bool(size.any()):
        return
    moved = any(bool((leaf != leaf[:1]).any()) for leaf in pytree.tree_leaves(state))
    if moved:  # a start that follows x may be an answer
        return
    record.find(
        "dead start",
        "f(z0, x) = z0 exactly for every sample: the solve takes no step, and z does not depend "
        "on x",
        "Begin elsewhere (start={'name': 'one_step'} or a learned start), or add x outside of what "
        "z multiplies",
    )


@torch.no_grad()
def _check_singular(subject: Subject, record: Record) -> None:
    """Find a Jacobian at the start of an integration that is far larger than a step further on.

    A root solver has left the place after one step.
    """
    integrates = not subject.is_root or isinstance(subject.layer.solver, SteadyState)
    if subject.layer.coupled or not integrates:
        return
    state = subject.start()
    system = subject.system(state)
    z = system.packing.pack(state)
    velocity = system.velocity(times_of(z), z)
    further = system.packing.unpack(z + velocity)
    here, there = (steepness(subject, it) for it in (state, further))
    record.figures["start_radius"] = here.max().item()
    worse = (here > STEEP) & (here > RATIO * there)
    if worse.float().mean() < 0.5:
        return
    record.find(
        "singular start",
        f"the Jacobian of f at z0 has a spectral radius of {here.median():.3g}, and "
        f"{there.median():.3g} one step further on",
        "A normalisation is singular where all its inputs are alike: begin at values apart from "
        "each other (a learned start at +-1), or raise its eps",
    )


def steepness(subject: Subject, state: Any) -> Tensor:
    """The spectral radius of dv/dz at time 0, ``[batch]``."""
    system = subject.system(state)
    t = times_of(system.packing.pack(state))

    def velocity(z: Any, x: Any) -> Any:
        return subject.layer.dynamics.velocity(system.packing.spread(t), z, x)

    return spectral_radius(velocity, state, subject.x, steps=12)
