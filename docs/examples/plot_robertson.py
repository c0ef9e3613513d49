r"""
Robertson's kinetics with gradients
===================================

Three substances and rates of 0.04, 1e4 and 3e7: the standard stiff problem. An implicit method takes steps as long as the solution is smooth, and
``Checkpointed`` differentiates through them. The claim: ESDIRK crosses seven decades of time in less than two hundred steps, mass is conserved, and the gradient with respect to
the rates is that of finite differences.
"""

import matplotlib.pyplot as plt
import torch

import implicitcore as ic

rates = torch.tensor([0.04, 1e4, 3e7], dtype=torch.float64)
times = torch.cat((torch.zeros(1), torch.logspace(-4, 3, 36))).double()
z0 = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)


def kinetics(t, z, log_rates):
    first, second, third = log_rates.exp().unbind(1)
    a, b, c = z.unbind(1)
    da = -first * a + second * b * c
    dc = third * b**2
    return torch.stack((da, -da - dc, dc), 1)


def concentrations(log_rates):
    return ic.integrate(
        kinetics,
        z0,
        log_rates[None],
        times=times,
        solver=ic.ESDIRK(rtol=1e-6, atol=1e-10, max_steps=3000),
        gradient=ic.Checkpointed(),
    )


log_rates = rates.log().requires_grad_()
solution = concentrations(log_rates)
mass = (solution.z.sum(-1) - 1).abs().max().item()
(gradient,) = torch.autograd.grad(solution.z[-1, 0, 2], log_rates)

# %%
# Central differences of the same solve.

step = 1e-3
with torch.no_grad():
    shifts = step * torch.eye(3, dtype=torch.float64)
    ends = [
        [concentrations(log_rates + sign * shift).z[-1, 0, 2] for sign in (1, -1)]
        for shift in shifts
    ]
differences = torch.tensor([(up - down) / (2 * step) for up, down in ends], dtype=torch.float64)
gradient_error = ((gradient - differences).norm() / differences.norm()).item()
taken = int(solution.steps.max())
print(f"{taken} steps, mass kept to {mass:.1e}, gradient error {gradient_error:.1e}")

figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
curves = solution.z[1:, 0].detach()
for i, (name, scale) in enumerate((("A", 1), ("B x 1e4", 1e4), ("C", 1))):
    ax.semilogx(times[1:], scale * curves[:, i], label=name)
ax.set(xlabel="time", ylabel="concentration")
ax.legend()
