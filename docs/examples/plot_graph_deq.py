"""
A graph DEQ on a real graph
===========================

Zachary's karate club: 34 members, and the side each took when the club split. The nodes of a graph are not independent samples, so the layer
is told, ``coupled=True``: one norm, one step, one stop test for all. The claim: from the two leaders' labels alone, the equilibrium
of a message passing cell places almost all others.
"""

import matplotlib.pyplot as plt
import networkx as nx
import torch
from torch import nn

import implicitcore as ic

torch.manual_seed(0)
graph = nx.karate_club_graph()
adjacency = torch.tensor(nx.to_numpy_array(graph, weight=None), dtype=torch.float32)
degree = adjacency.sum(1)
neighbours = adjacency / (degree[:, None] * degree).sqrt()  # its spectral radius is 1
side = torch.tensor([int(graph.nodes[n]["club"] != "Mr. Hi") for n in graph])
leaders = torch.tensor([0, 33])

# %%
# Each node's state is a damped mean of its neighbours' and its own input: a learned graph diffusion to the end.


class MessagePassing(nn.Module):
    def __init__(self, features):
        super().__init__()
        self.mix = nn.utils.parametrizations.orthogonal(nn.Linear(features, features, bias=False))

    def forward(self, z, x):
        return torch.tanh(0.9 * neighbours @ self.mix(z) + x)


layer = ic.build(
    "deq", MessagePassing(8), root_solver={"name": "anderson", "tol": 1e-5}, coupled=True
)
encode, head = nn.Linear(34, 8, bias=False), nn.Linear(8, 2, bias=False)
model = nn.Sequential(encode, layer, head)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-3)
nodes = torch.eye(34)
for _ in range(80):
    loss = nn.functional.cross_entropy(model(nodes)[leaders], side[leaders])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

with torch.no_grad():
    found = model(nodes).softmax(1)[:, 1]
    solution = layer.solve(encode(nodes))
right = ((found > 0.5).long() == side).sum().item()
print(f"{right} of 34 members are placed as they went; {solution.summary()}")

positions = nx.spring_layout(graph, seed=3)
figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
nx.draw_networkx_edges(graph, positions, ax=ax, edge_color="#cccccc")
drawn = nx.draw_networkx_nodes(
    graph, positions, ax=ax, node_color=found.tolist(), cmap="coolwarm", vmin=0, vmax=1
)
drawn.set_edgecolor(["black" if s else "white" for s in side])
nx.draw_networkx_labels(graph, positions, ax=ax, font_size=7)
ax.set_title("probability of the second side; black rings went there")
ax.axis("off")
figure.colorbar(drawn, ax=ax)
