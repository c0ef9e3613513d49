"""Models with implicit layers as artefacts for inference, whose solves stop by themselves."""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import reset_code
from torch._higher_order_ops.while_loop import while_loop
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from implicitcore.errors import ConfigError, ImplicitCoreError, InputError, describe_error
from implicitcore.graph.layer import AtTimes, in_graph
from implicitcore.graph.loop_inputs import ForCpp
from implicitcore.graph.times import checked_times
from implicitcore.layers.base import ImplicitLayer
from implicitcore.layers.dropout import VariationalDropout
from implicitcore.ode_solvers.times import Times, as_times
from implicitcore.system.captured_modules import captured_modules
from implicitcore.tensors.shared import Shared, unwrapped


def export(
    model: nn.Module, example: Any, path: str | os.PathLike[str], *, times: Times = None
) -> Path:
    """Write a model with implicit layers as a file that predicts where this library is not.

    The loop of each solve is inside, with its stop test: every sample of every batch takes the
    steps that it needs, is frozen where it stops, and gives its best iterate, as in ``model(x)``.
    The end of the name says what is written:

    - ``.pt2``: an exported program, ``torch.export.load(path).module()(x)``;
    - ``.aoti.pt2``: machine code for processors of this kind,
      ``torch._inductor.aoti_load_package(path)(x)``; writing it needs a C++ compiler;
    - ``.onnx``: an ONNX model in which the solve is a Loop, ``onnxruntime.InferenceSession(path)``;
      writing it needs ``onnx`` and ``onnxscript``.

    The model is written as it is in ``eval()`` and is not changed. A graph neither raises nor
    warns: where the layer would raise (``on_failure``), that sample's output is NaN. For the status
    and the residual beside z, let the forward of the model return them of ``layer.solve(x)``.

    Arguments:
        model: a layer, or a module that holds layers and calls them, with the solvers ``Picard``,
            ``Anderson``, ``Broyden``, ``Adams``, the explicit Runge-Kutta methods, and
            ``SteadyState`` with one of the latter.
        example: an input as the model takes it, any pytree; a tuple holds the positional arguments.
            The first dimension of its tensors is the batch, which may have another size later,
            but for those marked by :func:`shared`.
        path: where to write, ``.pt2``, ``.aoti.pt2`` or ``.onnx``.
        times: of a model that is a layer with an ODE solver, the output times ``[T]``: the file has
            them, and gives the states ``[T, batch, ...]``. The forward of another model gives its
            layers times itself, ``layer(x, times=...)``: a buffer, or an input of the model, which
            the example marks by :func:`shared` where it is ``[T]``. Times that are an input cannot
            be refused: where they are not in order, the states are NaN.

    Returns:
        The path.

    Raises:
        ConfigError: a layer or a format that cannot be exported, or a package that is missing;
            times of a model that is no layer.
        InputError: the example has no batch, the times cannot be used, or the model cannot be
            traced.

    Example:
        >>> import torch, implicitcore as ic
        >>> cell = ic.FixedPoint(lambda z, x: (z + x).sin() / 2)
        >>> layer = ic.ImplicitLayer(cell, solver="anderson")
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), layer)
        >>> from tempfile import mkdtemp
        >>> file = ic.export(model, torch.ones(2, 3), mkdtemp() + "/model.pt2")
        >>> torch.export.load(file).module()(torch.ones(5, 3)).shape
        torch.Size([5, 4])
    """
    path = Path(path)
    write, grid = _writer(path), _grid_of(model, times)
    arguments, shapes = _batched(example if isinstance(example, tuple) else (example,))
    if any(torch.is_autocast_enabled(leaf.device.type) for leaf in _tensors(arguments)):
        raise ConfigError(["export: outside of autocast; write the model in the dtype it is in"])
    # A number is a constant, also where another model had another one in its place.
    constant = torch._dynamo.config.patch(specialize_float=True)
    with (
        torch.no_grad(),
        constant,
        _forgotten_loops(),
        _for_inference(model, grid) as traced,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of torch, about its own parts
        try:
            program = torch.export.export(traced, arguments, dynamic_shapes=shapes, strict=False)
            write(program, path)
        except ImplicitCoreError:
            raise
        except Exception as error:
            raise InputError(
                f"{type(model).__name__} cannot be written as {path.name}: {describe_error(error)}"
            ) from error
    return path


@contextmanager
def _forgotten_loops() -> Iterator[None]:
    """Without what torch has kept of loops, and nothing of those in the block is kept.

    A loop that is traced is compared with all that were before it, and what these required of a
    size, as one that could not be exported for it, would be required of the batch.
    """
    inner = (each for each in while_loop.__code__.co_consts if isinstance(each, CodeType))
    loops = [code for code in inner if code.co_name == "_while_loop_op_wrapper"]
    try:
        for code in loops:
            reset_code(code)
        yield
    finally:
        for code in loops:
            reset_code(code)


Write = Callable[[Any, Path], Any]


def _writer(path: Path) -> Write:
    """What writes the format that the name ends with.

    Raises:
        ConfigError: there is none, or something that it needs is missing.
    """
    if path.name.endswith(".aoti.pt2"):
        if shutil.which(os.environ.get("CXX", "g++")) is None:
            raise ConfigError(["path: .aoti.pt2 needs a C++ compiler (g++, or CXX)"])
        return _write_machine_code
    if path.suffix == ".pt2":
        return torch.export.save
    if path.suffix == ".onnx":
        missing = [name for name in ("onnx", "onnxscript") if not importlib.util.find_spec(name)]
        if missing:
            needed = " and ".join(missing)
            raise ConfigError([f"path: .onnx needs {needed}: pip install onnx onnxscript"])
        return _write_onnx
    raise ConfigError([f"path: expected a name in .pt2, .aoti.pt2 or .onnx; got {path.name!r}"])


def _write_machine_code(program: Any, path: Path) -> None:
    options = {"post_grad_custom_post_pass": ForCpp()}
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(path), inductor_configs=options
    )


def _write_onnx(program: Any, path: Path) -> None:
    found = torch.onnx.export(program, (), dynamo=True, verbose=False)
    if found is not None:
        found.save(path)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def _batched(arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The arguments without marks and with two samples at least, and which dimensions may change.

    Raises:
        InputError: no tensor has a batch, or they have several.
    """
    batch = torch.export.Dim("batch")

    def is_shared(node: Any) -> bool:
        return isinstance(node, Shared)

    def has_batch(leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.ndim > 0

    leaves = filter(has_batch, pytree.tree_leaves(arguments, is_leaf=is_shared))
    sizes = {leaf.shape[0] for leaf in leaves}
    if len(sizes) != 1 or 0 in sizes:
        raise InputError(
            "the tensors of the example have the batch first, of one size; received the sizes "
            f"{sorted(sizes)}: mark a tensor that belongs to all samples, implicitcore.shared(t)"
        )

    def filled(leaf: Any) -> Any:
        # A size of one would be taken for a constant.
        return torch.cat((leaf, leaf)) if has_batch(leaf) and 1 in sizes else leaf

    def dimensions(leaf: Any) -> Any:
        if isinstance(leaf, Shared):
            return pytree.tree_map(lambda _: None, leaf.value)
        return {0: batch} if has_batch(leaf) else None

    shapes = pytree.tree_map(dimensions, arguments, is_leaf=is_shared)
    return unwrapped(pytree.tree_map(filled, arguments, is_leaf=is_shared)), shapes


def _grid_of(model: nn.Module, times: Times) -> Tensor | None:
    """The output times of a layer, in their own dtype.

    Raises:
        ConfigError: the model is no layer.
        InputError: they are none that each sample can have.
    """
    if times is None:
        return None
    if not isinstance(model, ImplicitLayer):
        raise ConfigError(
            [
                f"times: {type(model).__name__} is no layer; let its forward give its layers the "
                "times, layer(x, times=...)"
            ]
        )
    given = as_times(times)
    if isinstance(given, Tensor) and given.ndim > 1:
        raise InputError(
            "times: a file has those of all samples; expected shape [T], received "
            f"{list(given.shape)}; times of each sample are an input of a model that gives them to "
            "its layer"
        )
    found = checked_times(model.solver, given, torch.zeros(1, 1), coupled=False)
    return None if found is None else found.all


@contextmanager
def _for_inference(model: nn.Module, times: Tensor | None) -> Iterator[nn.Module]:
    """A copy of the model to be traced; what its functions call is in ``eval()`` in the block."""
    model = copy.deepcopy(model).eval()
    for module in list(model.modules()):
        _fix_weights(module)
    layers = [module for module in model.modules() if isinstance(module, ImplicitLayer)]
    # A function is not copied: the modules that it calls are those of the model itself.
    called = [part for layer in layers for part in captured_modules(layer.dynamics)]
    modules = [*model.modules(), *(inner for part in called for inner in part.modules())]
    before = [(module, module.training) for module in modules]
    dropouts = [(m, m.p) for m in modules if isinstance(m, VariationalDropout)]
    try:
        for module in modules:
            module.training = False
        for module, _ in dropouts:
            module.p = 0.0  # in eval it does nothing, and a graph cannot ask for its mode
        traced = in_graph(model)
        yield traced if times is None else AtTimes(traced, times)
    finally:
        for module, training in before:
            module.training = training
        for module, p in dropouts:
            module.p = p


def _fix_weights(module: nn.Module) -> None:
    """Make what parametrizations compute plain parameters of a module that was copied.

    By hand, for it shares its class with the original, from which torch would take the weights.
    """
    if not parametrize.is_parametrized(module):
        return
    weights = {name: getattr(module, name).detach() for name in module.parametrizations}  # pyright: ignore[reportGeneralTypeIssues]
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight, requires_grad=False))
