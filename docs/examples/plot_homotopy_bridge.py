r"""
HomoODE and the bridge
======================

An equilibrium is also the end of a flow. The zero path of :math:`H(z, s) = s (z - f(z)) + (1 - s)(z - a)` leads from :math:`a` to the fixed
point, and obeys :math:`dz/ds = (I - s J)^{-1} (f(z) - a)`: what a DEQ finds as a root, a Neural ODE finds as a state at the time 1.
The claim: both find the same point, and a HomoODE learns such a field.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import implicitcore as ic

torch.manual_seed(0)
weight = torch.tensor([[0.5, -0.9], [0.9, 0.4]], dtype=torch.float64)
f = lambda z, x: torch.tanh(z @ weight.T + x)  # noqa: E731
x = torch.randn(24, 2, dtype=torch.float64)
a = torch.zeros_like(x)

root = ic.fixed_point(f, a, x, solver=ic.Newton(tol=1e-10))

# %%
# The same by integration. The Jacobian of two numbers is small enough to be written out.


def velocity(s, z, x):
    value = f(z, x)
    jacobian = (1 - value**2)[:, :, None] * weight
    system = torch.eye(2, dtype=z.dtype) - s[:, :, None] * jacobian
    return torch.linalg.solve(system, value - a)


times = torch.linspace(0, 1, 30, dtype=torch.float64)
path = ic.integrate(velocity, a, x, times=times, solver=ic.Tsit5(rtol=1e-9, atol=1e-11))
bridge = (path.z[-1] - root.z).norm() / root.z.norm()
print(f"relative difference of root and flow: {bridge:.1e}")

# %%
# A HomoODE learns a field F(z; c) from a start that all samples share. Here its target is the equilibrium of each x.


class Field(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2)).double()

    def forward(self, z, c):
        return self.net(torch.cat((z, c), -1))


layer = ic.build("homoode", Field(), channels=2, init="signs").double()
optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
target = root.z.detach()
losses = []
for _ in range(150):
    solution = layer.solve(x)
    loss = (solution.z - target).square().mean()
    losses.append(loss.item())
    optimizer.zero_grad()
    (loss + layer.regularizer(solution)).backward()
    optimizer.step()

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
left.plot(*path.z.detach().permute(2, 0, 1).numpy(), color="tab:purple", linewidth=0.8)
left.plot(*root.z.detach().T.numpy(), "k*", label="roots")
left.set(xlabel="$z_1$", ylabel="$z_2$", title="zero paths of the homotopy")
left.legend()
right.semilogy(losses)
right.set(xlabel="step", ylabel="mean square distance", title="a HomoODE learns the equilibria")
