r"""
Density by a continuous normalizing flow
========================================

A flow :math:`dz/dt = v(t, z)` carries a density along: :math:`\frac{d}{dt} \log p(z(t)) = -\operatorname{tr} \frac{\partial v}{\partial z}`.
State and log-density are one pytree, and go through one solve. The claim: the likelihood of two moons rises above that of the best Gaussian, and the
density integrates to 1.
"""

import os

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import make_moons
from torch import nn

import implicitcore as ic

steps = 60 if os.environ.get("IMPLICITCORE_GALLERY") == "small" else 250
torch.manual_seed(0)
moons = torch.tensor(make_moons(400, noise=0.06, random_state=0)[0], dtype=torch.float32)
moons = (moons - moons.mean(0)) / moons.std(0)
normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))


class Field(nn.Module):
    """One hidden layer of units that depend on the time; the trace of its Jacobian is a sum over them."""

    def __init__(self, hidden=64):
        super().__init__()
        self.into = nn.Linear(3, hidden)
        self.out = nn.Linear(hidden, 2, bias=False)

    def forward(self, t, state):
        z, _ = state
        unit = torch.tanh(self.into(torch.cat((z, t.expand(len(z), 1)), 1)))
        trace = ((self.out.weight * self.into.weight[:, :2].T).sum(0) * (1 - unit**2)).sum(1)
        return self.out(unit), -trace[:, None]


field = Field()


def log_density(points):
    """Back from the data at t = 1 to the normal distribution at t = 0."""
    start = (points, torch.zeros(len(points), 1))
    flow = ic.integrate(
        lambda t, state, x: field(t, state),
        start,
        times=torch.tensor([1.0, 0.0]),
        solver=ic.Dopri5(rtol=1e-3, atol=1e-4),
    )
    z, change = flow.z
    return normal.log_prob(z[-1]) - change[-1, :, 0]


optimizer = torch.optim.Adam(field.parameters(), lr=1e-2)
history = []
for _ in range(steps):
    loss = -log_density(moons).mean()
    history.append(-loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# The best Gaussian has the mean and covariance of the data.

gaussian = torch.distributions.MultivariateNormal(moons.mean(0), moons.T.cov())
baseline = gaussian.log_prob(moons).mean().item()
axis = torch.linspace(-3.5, 3.5, 90)
grid = torch.cartesian_prod(axis, axis)
with torch.no_grad():
    density = log_density(grid).exp().reshape(90, 90)
mass = (density.sum() * (axis[1] - axis[0]) ** 2).item()
print(f"log-likelihood {history[-1]:.3f}, best Gaussian {baseline:.3f}; mass {mass:.3f}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(history)
left.axhline(baseline, color="gray", linestyle="--", label="best Gaussian")
left.set(xlabel="step", ylabel="mean log-likelihood")
left.legend()
right.pcolormesh(axis.numpy(), axis.numpy(), density.T.numpy(), cmap="magma")
right.plot(*moons.T.numpy(), ".", color="white", markersize=1)
