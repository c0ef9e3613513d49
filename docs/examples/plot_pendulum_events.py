r"""
A pendulum with events
======================

The period of a pendulum depends on how far it swings. An event ends each sample where the pendulum passes through the bottom, a quarter of its
period after it was let go; the time of the event is an implicit function, and has a gradient. The claim: the periods are those of the elliptic integral, and
the length that gives a wanted period is found by following that gradient.
"""

import math

import matplotlib.pyplot as plt
import torch
from scipy.special import ellipk

import implicitcore as ic

angles = torch.linspace(0.1, 3.0, 30, dtype=torch.float64)


def period(angles, length):
    """Four times the time to the bottom."""

    def pendulum(t, z, x):
        angle, speed = z[:, :1], z[:, 1:]
        return torch.cat((speed, -9.81 / x * torch.sin(angle)), 1)

    z0 = torch.stack((angles, torch.zeros_like(angles)), 1)
    fall = ic.integrate(
        pendulum,
        z0,
        length.expand(len(angles), 1),
        times=torch.tensor([0.0, 10.0], dtype=torch.float64),
        solver=ic.Tsit5(rtol=1e-9, atol=1e-11),
        event=lambda t, z, x: z[:, 0],
    )
    return 4 * fall.event_times


one = torch.ones(1, 1, dtype=torch.float64)
found = period(angles, one)
exact = 4 / math.sqrt(9.81) * torch.from_numpy(ellipk(torch.sin(angles / 2).square().numpy()))
worst = ((found - exact) / exact).abs().max().item()
print(f"largest relative error of the period: {worst:.1e}")

# %%
# Which length has a period of 2 seconds, let go at 2 radians? Newton's method on the event time.

length = one.clone().requires_grad_()
for _ in range(6):
    duration = period(angles.new_tensor([2.0]), length)
    (slope,) = torch.autograd.grad(duration.sum(), length)
    length = (length - (duration.detach() - 2) / slope).detach().requires_grad_()
reached = period(angles.new_tensor([2.0]), length).item()
print(f"length {length.item():.4f} m, period {reached:.10f} s")

figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
ax.plot(angles, exact, label="elliptic integral")
ax.plot(angles, found, "o", markersize=4, label="event")
ax.axhline(2 * math.pi / math.sqrt(9.81), color="gray", linestyle="--", label="small swings")
ax.set(xlabel="angle at which it is let go", ylabel="period / s")
ax.legend()
