r"""
A monotone operator layer with its certificate
==============================================

The equilibrium of :math:`z = \operatorname{relu}(W z + b + x)` exists and is unique where :math:`I - W` is strongly monotone, whatever the norm of W.
``MonotoneCell`` keeps to it by its parametrization, and says so: ``cell.certificate()``. The claim: the certified rate bounds what is measured, before and after training,
and every start ends at one point.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import implicitcore as ic
from implicitcore_layers import MonotoneCell

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32) / 8 - 1
labels = torch.tensor(labels)

cell = MonotoneCell(24, margin=0.5)
layer = ic.build("deq", cell, root_solver={"name": "anderson", "tol": 1e-4, "max_steps": 200})
encoder, head = nn.Linear(64, 24), nn.Linear(24, 10)
model = nn.Sequential(encoder, layer, head)


def measured_rate():
    """The largest factor by which one step of the iteration brings two states together."""
    x = encoder(images[:64]).detach()
    a, b = torch.randn(2, 64, 24)
    with torch.no_grad():
        return ((cell(a, x) - cell(b, x)).norm(dim=1) / (a - b).norm(dim=1)).max().item()


before = (cell.certificate(), measured_rate())
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(6):
    for rows in torch.randperm(1400).split(100):
        loss = nn.functional.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
after = (cell.certificate(), measured_rate())
with torch.no_grad():
    accuracy = (model(images[1400:]).argmax(1) == labels[1400:]).float().mean().item()
    norm = torch.linalg.matrix_norm(cell.weight(), 2).item()

# %%
# Many starts, one end.

x = encoder(images[:1]).detach().expand(32, -1)
starts = 5 * torch.randn(32, 24)
with torch.no_grad():
    ends = ic.fixed_point(cell, starts, x, solver=ic.Broyden(tol=1e-6, max_steps=400)).z
    path, distances = starts, []
    for _ in range(60):
        distances.append((path - ends[:1]).norm(dim=1))
        path = cell(path, x)
spread = ((ends - ends.mean(0)).norm(dim=1).max() / ends.norm(dim=1).mean()).item()
print(f"accuracy {accuracy:.3f}, |W| = {norm:.2f}; {after[0]}; ends differ by {spread:.1e}")

figure, ax = plt.subplots(figsize=(6, 3.4), layout="constrained")
distances = torch.stack(distances)
ax.semilogy(distances, color="tab:blue", linewidth=0.6)
bound = distances[0].max() * after[0].rate ** torch.arange(60)
ax.semilogy(bound, "k--", label="certified")
ax.set(xlabel="plain iterations", ylabel="distance to the equilibrium")
ax.legend()
