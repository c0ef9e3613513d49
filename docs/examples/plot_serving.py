"""
Serving an exported model
=========================

A trained equilibrium model leaves as one file, with the loop of the solve inside, and answers in a
process that has torch alone. The claim: the same answers for batches of any size, each sample
stopping by itself, without this library.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import implicitcore as ic
from implicitcore_layers import ContractiveCell

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images, dtype=torch.float32) / 8 - 1, torch.tensor(labels)
layer = ic.build(
    "deq", ContractiveCell(64, bound=0.9), root_solver={"name": "anderson", "tol": 1e-4}
)


class Model(nn.Module):
    """Logits, and how many iterations each sample took."""

    def __init__(self):
        super().__init__()
        self.encoder, self.layer, self.head = nn.Linear(64, 64), layer, nn.Linear(64, 10)

    def forward(self, x):
        solution = self.layer.solve(self.encoder(x))
        return self.head(solution.z), solution.steps


model = Model()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(5):
    for rows in torch.randperm(1400).split(100):
        loss = nn.functional.cross_entropy(model(images[rows])[0], labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

# %%
# The file is written once, from one example. What serves it needs to know nothing of solvers.

server = """
import sys, torch
run = torch.export.load(sys.argv[1]).module()
answers = {size: run(x) for size, x in torch.load(sys.argv[2]).items()}
assert not any(name.startswith("implicitcore") for name in sys.modules)
torch.save(answers, sys.argv[3])
"""
sizes = (1, 3, 17, 300)
requests = {size: images[1400 : 1400 + size] for size in sizes}
with tempfile.TemporaryDirectory() as folder:
    path, asked, answered = (Path(folder) / name for name in ("model.pt2", "x.pt", "y.pt"))
    ic.export(model, images[:4], path)
    torch.save(requests, asked)
    subprocess.run([sys.executable, "-I", "-c", server, path, asked, answered], check=True)
    answers, run = torch.load(answered), torch.export.load(path).module()

model.eval()
with torch.no_grad():
    expected = {size: model(x) for size, x in requests.items()}
away = max((answers[size][0] - expected[size][0]).abs().max().item() for size in sizes)
same_steps = all(torch.equal(answers[size][1], expected[size][1]) for size in sizes)
accuracy = (answers[300][0].argmax(1) == labels[1400:1700]).double().mean().item()
words = f"{100 * accuracy:.1f} % right; {away:.1e} from the layer"
print(f"{words}; the same steps: {same_steps}")

# %%
# What a call takes here, in the process that trained.


def milliseconds(call, x):
    taken = []
    with torch.no_grad():
        for _ in range(20):
            begun = time.process_time()
            call(x)
            taken.append(1e3 * (time.process_time() - begun))
    return min(taken)


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for name, call in (("layer", model), ("exported", run)):
    left.plot(sizes, [milliseconds(call, requests[size]) for size in sizes], "o-", label=name)
left.set(xscale="log", xlabel="samples in a call", ylabel="CPU time of a call (ms)", ylim=(0, None))
left.legend()
steps = answers[300][1]
right.hist(steps.tolist(), bins=range(int(steps.min()), int(steps.max()) + 2), align="left")
right.set(xlabel="iterations of a sample, as the file counted them", ylabel="samples of 300")
