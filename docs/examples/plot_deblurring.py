r"""
Deblurring with a DEQ prior
===========================

An image :math:`u` is seen blurred and with noise, :math:`y = A u + n`. Gradient descent on :math:`\|A u - y\|^2` with a learned step between,
repeated to its end, is a fixed-point equation, :math:`z = R(z - \eta A^\top (A z - y))`: a DEQ whose cell knows the physics. The claim: the learned
equilibrium restores unseen digits better than the best Tikhonov regularisation.
"""

import os

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import implicitcore as ic

steps = 100 if os.environ.get("IMPLICITCORE_GALLERY") == "small" else 200
torch.manual_seed(0)
digits = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
kernel = torch.tensor([1.0, 2.0, 1.0])
kernel = (kernel[:, None] * kernel / 16)[None, None]


def blur(u):
    return nn.functional.conv2d(u, kernel, padding=1)  # symmetric: its own transpose


def seen(u):
    return blur(u) + 0.05 * torch.randn_like(u)


# %%
# R is the mean of the step of descent and of a network on it. Spectral norms keep the network near a contraction, and so the mean.


class Restore(nn.Module):
    def __init__(self, channels=16):
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.net = nn.Sequential(
            norm(nn.Conv2d(1, channels, 3, padding=1)),
            nn.ReLU(),
            norm(nn.Conv2d(channels, channels, 3, padding=1)),
            nn.ReLU(),
            norm(nn.Conv2d(channels, 1, 3, padding=1)),
        )

    def forward(self, z, y):
        descent = z - blur(blur(z) - y)
        return 0.5 * (descent + self.net(descent))


layer = ic.build("deq", Restore(), root_solver={"name": "anderson", "tol": 1e-3, "max_steps": 60})
optimizer = torch.optim.Adam(layer.parameters(), lr=3e-3)
for _ in range(steps):
    clean = digits[torch.randint(0, 1500, (48,))]
    loss = (layer(seen(clean)) - clean).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

# %%
# Tikhonov: (A^T A + w I) u = A^T y, with the weight w that is best on the test images themselves.

clean = digits[1500:]
observed = seen(clean)
matrix = blur(torch.eye(64).reshape(64, 1, 8, 8)).reshape(64, 64)
rhs = observed.reshape(-1, 64) @ matrix
candidates = [
    torch.linalg.solve(matrix @ matrix + w * torch.eye(64), rhs.T).T.reshape(clean.shape)
    for w in torch.logspace(-3, 0, 13)
]
tikhonov = min(candidates, key=lambda u: (u - clean).square().mean())
with torch.no_grad():
    solution = layer.solve(observed)


def psnr(u):
    return -10 * (u - clean).square().mean().log10().item()


quality = {"seen": psnr(observed), "Tikhonov": psnr(tikhonov), "DEQ": psnr(solution.z)}
print({name: f"{value:.1f} dB" for name, value in quality.items()}, solution.summary())

figure, axes = plt.subplots(4, 6, figsize=(6, 4.2), layout="constrained")
shown = {"true": clean, "seen": observed, "Tikhonov": tikhonov, "DEQ": solution.z}
for row, (name, images) in zip(axes, shown.items(), strict=True):
    row[0].set_ylabel(name)
    for ax, image in zip(row, images, strict=False):
        ax.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
