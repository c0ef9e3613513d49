"""
An equilibrium language model
=============================

One block of a causal transformer, iterated to its equilibrium, reads Python's own documentation and
predicts the next character. The claim: after a minute of training it needs far fewer bits for a
character than one who knows how frequent each is, and than one who knows the character before.
"""

import math
import os
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
from torch import nn

import implicitcore as ic
from implicitcore_layers import CausalTransformerCell

small = os.environ.get("IMPLICITCORE_GALLERY") == "small"
steps, window, batch, features = 120 if small else 400, 48, 16, 48
torch.manual_seed(0)
text = "\n".join(topics.values())
alphabet = sorted(set(text))
codes = torch.tensor([alphabet.index(letter) for letter in text])
cut = len(codes) * 4 // 5
train, test = codes[:cut], codes[cut:]


def windows(codes, count, generator):
    starts = torch.randint(len(codes) - window - 1, (count,), generator=generator)
    found = codes[starts[:, None] + torch.arange(window + 1)]
    return found[:, :-1], found[:, 1:]


# %%
# What counting alone gives, on the same test text: the entropy of single characters, and of a
# character given the one before.

pairs = torch.ones(len(alphabet), len(alphabet))
pairs.index_put_((train[:-1], train[1:]), torch.ones(len(train) - 1), accumulate=True)
single = pairs.sum(0) / pairs.sum()
alone = -single[test].log2().mean().item()
after = -(pairs / pairs.sum(1, keepdim=True))[test[:-1], test[1:]].log2().mean().item()

# %%
# The model: characters and places go in as x, the equilibrium comes out, a linear head reads it.
# The Jacobian term keeps the block near enough a contraction for few iterations.


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(len(alphabet), features)
        self.places = nn.Parameter(0.1 * torch.randn(window, features))
        self.layer = ic.build(
            "skip_reg_deq",
            CausalTransformerCell(features),
            root_solver={"name": "anderson", "tol": 3e-2, "max_steps": 16},
            gradient={
                "name": "implicit",
                "solver": {"name": "gmres", "tol": 0.1, "max_products": 8},
                "clip": 10.0,
            },
            on_failure="ignore",  # the best of 16 iterates is read, converged or not
        )
        self.head = nn.Linear(features, len(alphabet))

    def forward(self, codes):
        x = self.embed(codes) + self.places
        return self.layer.solve(x), x


def entropy(model, z, following):
    return nn.functional.cross_entropy(model.head(z).flatten(0, 1), following.flatten())


model, generator = Model(), torch.Generator().manual_seed(0)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
history, spent = [], []
for _ in range(steps):
    codes, following = windows(train, batch, generator)
    solution, x = model(codes)
    loss = entropy(model, solution.z, following)
    history.append(loss.item() / math.log(2))
    spent.append(solution.steps.double().mean().item())
    loss = loss + 0.03 * ic.jacobian_regularizer(model.layer, solution, x)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()

with torch.no_grad():
    codes, following = windows(test, 256, torch.Generator().manual_seed(1))
    solution, _ = model(codes)
    bits = entropy(model, solution.z, following).item() / math.log(2)
print(f"{bits:.2f} bits per character; counting: {alone:.2f}, pairs {after:.2f}")
print(solution.summary())

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
left.plot(history, label="a batch of the training text")
left.axhline(bits, color="black", label="test text, at the end")
left.axhline(alone, linestyle="--", color="grey", label="frequencies of characters")
left.axhline(after, linestyle=":", color="grey", label="frequencies of pairs")
left.set(xlabel="step", ylabel="bits per character", ylim=(0, history[0]))
left.legend(fontsize="small")
right.plot(spent)
right.set(xlabel="step", ylabel="evaluations of the block, per sample", ylim=(0, 17))
