"""What layers and dynamics promise as modules."""

from __future__ import annotations

import copy
import io

import torch
from torch import nn

from implicitcore.testing.calls import module_call
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect, expect_equal
from implicitcore.testing.factory import Maker
from implicitcore.testing.tensors import copied


@contract("layer", "dynamics")
def deepcopy(maker: Maker) -> None:
    """A deep copy is its equal, and shares no parameter."""
    module = maker.make()
    twin = copy.deepcopy(module)
    _expect_same(maker, module, twin, "copied it")
    # A parameter is equal to itself alone in a set.
    shared = set(module.parameters()) & set(twin.parameters())
    expect(not shared, "copied it", f"{len(shared)} shared parameters", "none")


@contract("layer", "dynamics")
def state_dict_round_trip(maker: Maker) -> None:
    """Another one with its state_dict, saved and loaded as plain tensors, is its equal."""
    module, twin = maker.make(), maker.make(seed=1)
    if not module.state_dict():
        raise NotApplicable("it has no state to reload")
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    _expect_same(maker, module, twin, "loaded its state_dict into one with other weights")


def _expect_same(maker: Maker, module: nn.Module, twin: nn.Module, did: str) -> None:
    call, other = module_call(maker, module), module_call(maker, twin)
    expected = call.run(copied(call.inputs))
    for name, value in other.run(copied(other.inputs)).items():
        expect_equal(value, expected[name], f"{did}, compared {name}")
