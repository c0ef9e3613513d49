"""
Continuous and Skip DEQ
=======================

One encoder and one kind of cell, four layers: a DEQ, a Continuous DEQ that integrates to the steady state, a Skip DEQ that begins from a
prediction, and a Skip Reg DEQ whose cell predicts for itself. The claim: all learn alike, and those that begin near their equilibrium
need fewer evaluations.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import implicitcore as ic
from implicitcore_layers import ContractiveCell

images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32) / 8 - 1
labels = torch.tensor(labels)

# %%
# The skip layers add a term to the loss, ``layer.regularizer(solution)``: the distance from the start to the equilibrium.

flow = {"name": "steady_state", "ode_solver": "tsit5", "tol": 1e-3}
options = {
    "deq": {"root_solver": {"name": "anderson", "tol": 1e-3}},
    "continuous_deq": {"root_solver": flow},
    "skip_deq": {"root_solver": flow, "weight": 1.0},
    "skip_reg_deq": {"root_solver": flow, "weight": 1.0},
}
accuracy, evaluations = {}, {}
for name, chosen in options.items():
    torch.manual_seed(0)
    extra = {"predictor": nn.Linear(32, 32)} if name == "skip_deq" else {}
    layer = ic.build(name, ContractiveCell(32, bound=0.9), **chosen, **extra)
    encoder, head = nn.Linear(64, 32), nn.Linear(32, 10)
    parts = nn.ModuleList((encoder, layer, head))
    optimizer = torch.optim.Adam(parts.parameters(), lr=3e-3)
    for _ in range(6):
        for rows in torch.randperm(1400).split(100):
            solution = layer.solve(encoder(images[rows]))
            loss = nn.functional.cross_entropy(head(solution.z), labels[rows])
            optimizer.zero_grad()
            (loss + layer.regularizer(solution)).backward()
            optimizer.step()
    with torch.no_grad():
        solution = layer.solve(encoder(images[1400:]))
        accuracy[name] = (head(solution.z).argmax(1) == labels[1400:]).float().mean().item()
    evaluations[name] = solution.evaluations

figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for ax, values, label in zip(
    axes, (accuracy, evaluations), ("test accuracy", "evaluations of the cell"), strict=True
):
    bars = ax.barh(list(values), list(values.values()))
    ax.bar_label(bars, fmt="%.3g", padding=3)
    ax.set(xlabel=label, xlim=(0, 1.15 * max(values.values())))

for name in options:
    print(f"{name}: accuracy {accuracy[name]:.3f}, {evaluations[name]} evaluations")
