"""What layers, dynamics, starts and cells promise as modules."""

from __future__ import annotations

import copy
import io
import json
import pickle

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils import _pytree as pytree

from implicitcore.config.build import create, describe
from implicitcore.errors import UnknownPartError
from implicitcore.options.kinds import PIECE_KINDS
from implicitcore.options.options import options_of
from implicitcore.registry.registry import REGISTRY
from implicitcore.testing.calls import module_call
from implicitcore.testing.check import contract
from implicitcore.testing.expect import NotApplicable, expect, expect_equal
from implicitcore.testing.factory import Maker
from implicitcore.testing.subjects import MADE
from implicitcore.testing.tensors import copied, parameters


@contract(*MADE)
def deepcopy(maker: Maker) -> None:
    """A deep copy is its equal, and shares no parameter."""
    module = maker.make()
    twin = copy.deepcopy(module)
    _expect_same(maker, module, twin, "copied it")
    # A parameter is equal to itself alone in a set.
    shared = set(module.parameters()) & set(twin.parameters())
    expect(not shared, "copied it", f"{len(shared)} shared parameters", "none")


@contract(*MADE)
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


@contract(*PIECE_KINDS)
def pickle_round_trip(maker: Maker) -> None:
    """Pickled and loaded it is its equal."""
    module = maker.make()
    if any(is_parametrized(inner) for inner in module.modules()):
        raise NotApplicable("torch pickles no module with a parametrization")
    twin = pickle.loads(pickle.dumps(module))  # noqa: S301 - our own bytes
    _expect_same(maker, module, twin, "pickled it")


@contract(*PIECE_KINDS)
def config_round_trip(maker: Maker) -> None:
    """The configuration of a registered part is data, and builds its equal."""
    module = maker.make()
    try:
        REGISTRY.find_class(type(module))
    except UnknownPartError as error:
        raise NotApplicable(str(error)) from error
    functions = [each.name for each in options_of(type(module)).values() if each.from_python]
    if functions:
        raise NotApplicable(f"only Python can give {', '.join(functions)}")
    config = json.loads(json.dumps(describe(module)))
    twin = create(maker.kind, config).to(torch.float64).eval()
    expect(describe(twin) == config, f"created a part from {config}", describe(twin), config)
    twin.load_state_dict(module.state_dict())
    _expect_same(maker, module, twin, "created a part from the config, and loaded the state_dict")


@contract(*PIECE_KINDS)
def keeps_the_device(maker: Maker) -> None:
    """What is returned is on the device that the module and its inputs are on."""
    device = "cuda" if torch.cuda.is_available() else "meta"
    module = maker.make().to(device)
    call = module_call(maker, module)
    try:
        results = call.run(pytree.tree_map_only(Tensor, lambda leaf: leaf.to(device), call.inputs))
    except (RuntimeError, NotImplementedError) as error:
        if "meta tensor" not in str(error):
            raise
        raise NotApplicable("it reads values of tensors, which needs a GPU here") from error
    for value in results.values():
        expect(value.device.type == device, f"{call.name} on {device}", value.device, device)


@contract(*PIECE_KINDS)
def gradient_reaches_every_parameter(maker: Maker) -> None:
    """Each parameter gets a gradient from what is returned."""
    module = maker.make()
    if not parameters(module):
        raise NotApplicable("it has no parameters")
    call = module_call(maker, module)
    total = torch.stack([value.sum() for value in call.run(call.inputs).values()]).sum()
    expect(total.requires_grad, call.name, "no graph", "one that leads to the parameters")
    total.backward()
    lost = [
        name
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    expect(not lost, f"{call.name}, called backward", f"no gradient for {', '.join(lost)}", "one")


def _expect_same(maker: Maker, module: nn.Module, twin: nn.Module, did: str) -> None:
    call, other = module_call(maker, module), module_call(maker, twin)
    expected = call.run(copied(call.inputs))
    for name, value in other.run(copied(other.inputs)).items():
        expect_equal(value, expected[name], f"{did}, compared {name}")
