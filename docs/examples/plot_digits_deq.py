"""
A DEQ on images
===============

Handwritten digits with a Deep Equilibrium Model: an encoder, one implicit layer, a linear head.
The claim: accuracy grows, and the number of evaluations of the cell does not.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import implicitcore as ic
from implicitcore_layers import ContractiveCell

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32) / 8 - 1
labels = torch.tensor(labels)
x_train, y_train, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]

# %%
# The cell is a contraction by construction, so that one equilibrium exists whatever training does.

layer = ic.build(
    "deq", ContractiveCell(64, bound=0.9), root_solver={"name": "anderson", "tol": 1e-3}
)
model = nn.Sequential(nn.Linear(64, 64), layer, nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

# %%
# An observer sees every solve, and keeps what it cost.

costs, accuracies = [], []
with ic.observe(lambda solution: costs.append(solution.evaluations)):
    for _ in range(10):
        for rows in torch.randperm(1400).split(100):
            loss = nn.functional.cross_entropy(model(x_train[rows]), y_train[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracies.append((model(x_test).argmax(1) == y_test).float().mean().item())

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
left.plot(range(1, 11), accuracies, "o-")
left.set(xlabel="epoch", ylabel="test accuracy")
right.plot(costs)
right.set(xlabel="solve", ylabel="evaluations of the cell", ylim=(0, None))

print(f"accuracy {accuracies[-1]:.3f}, evaluations {costs[0]} to {costs[-1]}")
