"""Functions of tensors as one compiled graph, called with as little as can be in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from threading import local
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._C._dynamo.guards import GlobalStateGuard, TensorGuards
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._inductor.output_code import CompiledFxGraph
from torch._ops import OpOverload

from implicitcore.graph.loop_inputs import TORCH, ForCpp
from implicitcore.graph.parts import in_parts
from implicitcore.graph.products import ScaledSums

Kinds = tuple[Any, ...]
"""See :func:`kinds`."""

_COUNT = count()
_KINDS = (Tensor, torch.nn.Parameter)
_MOST = 256  # kinds of arguments that are kept


def compiled(
    function: Any,
    *,
    device: torch.device | None = None,
    in_cpp: bool = False,
    cuda_graphs: bool = False,
) -> Callable[..., Any]:
    """One graph of the function, for any size of the batch, and for a device where one is given.

    On a CPU its loop is in C++ where ``in_cpp``; from Python it takes twice as long there. With
    ``cuda_graphs`` it is on the host, and its iterations are CUDA graphs.
    """
    options: dict[str, Any] = {"cpp_wrapper": False, "post_grad_custom_pre_pass": ScaledSums()}
    if cuda_graphs:
        options["triton.cudagraphs"] = False  # of the parts, which are recorded here
    if device is not None and device.type == "cpu":
        # The state of a loop is in the order of its entries: with the channels last, each
        # convolution would reorder it, and the kernel, and back.
        options["layout_optimization"] = False
        if in_cpp:
            options |= {"cpp_wrapper": True, "post_grad_custom_post_pass": ForCpp()}
    return CompiledFunction(function, options, on_host=cuda_graphs)


def inductor(graph: Any, examples: Sequence[Any], options: dict[str, Any]) -> Callable[..., Any]:
    """A graph as a function, by the compiler of torch."""
    found: Any = lookup_backend("inductor")
    return found(graph, examples, config_patches=options)


class _Entry(NamedTuple):
    """What was compiled for arguments of one kind."""

    run: Callable[..., Any]
    arguments: tuple[tuple[int | None, Any], ...]  # the places of those tensors, or what else
    results: tuple[int, ...]  # the places of the function's among those of ``run``
    settings: GlobalStateGuard  # of torch, that it was compiled under
    alike: TensorGuards | None  # see :func:`guards`

    def of(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the function gives of tensors of the same kinds."""
        found = self.run(
            *[what if place is None else tensors[place] for place, what in self.arguments]
        )
        return tuple(map(found.__getitem__, self.results))

    def takes(self, tensors: Sequence[Tensor]) -> bool:
        """Whether they are known to be of the same kinds, and the settings what they were."""
        alike = self.alike
        if alike is None or torch._C._len_torch_dispatch_stack():
            return False
        return alike.check(*tensors) and self.settings.check()


class _Ran(NamedTuple):
    """What ran in a call: the graph by itself, or with what torch puts around it."""

    run: Callable[..., Any]
    arguments: Sequence[Any]
    results: Sequence[Any]

    def entry(
        self, tensors: Sequence[Tensor], found: Sequence[Tensor], settings: GlobalStateGuard
    ) -> _Entry | None:
        """How it gives what was found of the tensors; None where more has to be done.

        A result that is none of the function's is written into an argument by what is around it.
        """
        given = [(_place(argument, tensors), argument) for argument in self.arguments]
        taken = [_place(result, self.results) for result in found]
        # What is none of the function's tensors is a size, or a constant of the graph.
        known = all(type(what) in (int, *_KINDS) for place, what in given if place is None)
        whole = None not in taken and {*taken} == {*range(len(self.results))}
        if not known or not whole:
            return None
        arguments = tuple((place, what if place is None else None) for place, what in given)
        return _Entry(self.run, arguments, tuple(taken), settings, guards(tensors))  # pyright: ignore[reportArgumentType] - none is None


class CompiledFunction:
    """A function of tensors in one graph for all sizes of the batch, as ``torch.compile`` gives it.

    At each call torch checks all that a function may read, which takes longer than a small graph.
    This one reads its tensors alone, so their kinds and the settings of torch say which graph it
    is: what ran for the same ones before is called itself.

    Arguments:
        function: of tensors, to a tuple of tensors; it reads nothing else that changes.
        options: of the compiler.
        on_host: have its loops on the host, see :func:`in_parts`.
    """

    def __init__(
        self, function: Callable[..., Any], options: dict[str, Any], *, on_host: bool = False
    ) -> None:
        self.function, self.options, self.on_host = function, options, on_host
        self.entries: dict[Kinds, _Entry] = {}
        self._last: _Entry | None = None  # that ran
        self._checked: Any = self._fresh()
        self._ran = local()  # what ran in a checked call, in its thread
        self._graphs: list[CompiledFxGraph] = []

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """What the function gives."""
        last = self._last  # read once: another thread may put its own there
        if last is not None and last.takes(tensors):
            return last.of(tensors)
        return self.of_kinds(kinds(tensors), *tensors)

    def of_kinds(self, key: Kinds | None, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The same of tensors whose kinds are known; None: nothing tells them."""
        entry = None if key is None else self.entries.get(key)
        if entry is None or not entry.settings.check():
            return self._learn(key, tensors)
        self._last = entry
        return entry.of(tensors)

    def _learn(self, key: Kinds | None, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """By torch's own checks, which find the graph or make it."""
        settings, ran = GlobalStateGuard(), list[_Ran]()
        self._ran.last = ran
        try:
            found = self._found(tensors)
        finally:
            del self._ran.last  # which would hold its tensors
        entries = (each.entry(tensors, found, settings) for each in ran)
        entry = None if key is None else next(filter(None, entries), None)
        if key is not None and entry is not None:
            if len(self.entries) == _MOST:
                self.entries.clear()
            self.entries[key] = entry
        return found

    def _found(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """By torch, which keeps eight graphs of one code and refuses a ninth: another one begins.

        Each layout of x and each batch of one or none has a graph; ``entries`` has more of them.
        """
        try:
            return self._checked(*tensors)
        except FailOnRecompileLimitHit:
            self._checked = self._fresh()
            return self._checked(*tensors)

    def _fresh(self) -> Any:
        """For torch, with a code of its own: what it learns, as which sizes change, is there."""
        function = self.function
        code = function.__code__.replace(co_name=f"{function.__name__}_{next(_COUNT)}")
        own = FunctionType(code, function.__globals__, closure=function.__closure__)
        return torch.compile(own, fullgraph=True, backend=self._compile)

    def _compile(self, graph: Any, examples: list[Any]) -> Callable[..., Any]:
        """The compiler, which ``torch.compile`` calls with a graph for each kind of arguments."""
        run = self._built(graph, examples)
        self._watch(run)

        def recorded(*arguments: Any) -> Any:
            results = run(*arguments)
            self._note(_Ran(run, arguments, results))
            return results

        return recorded

    def _built(self, graph: Any, examples: list[Any]) -> Callable[..., Any]:
        options = {**self.options, "size_asserts": not _is_of_known(graph)}

        def build(part: Any, examples: Sequence[Any]) -> Callable[..., Any]:
            return inductor(part, examples, options)

        found = in_parts(graph, examples, build) if self.on_host else None
        return build(graph, examples) if found is None else found

    def _note(self, ran: _Ran) -> None:
        """In a checked call, and in no other."""
        if (known := self._ran.__dict__.get("last")) is not None:
            known.append(ran)

    def _watch(self, run: Callable[..., Any]) -> None:
        """Have what torch calls at last recorded as well: around it are twenty calls."""
        if (graph := _graph_of(run)) is None:
            return
        call: Any = graph.current_callable

        def direct(*arguments: Any) -> Any:
            return call([*arguments])

        def watched(arguments: list[Any]) -> Any:
            given = tuple(arguments)  # which the call empties
            results = call(arguments)
            self._note(_Ran(direct, given, results))
            return results

        graph.current_callable = watched
        self._graphs.append(graph)  # which takes parts of the call with it


def _is_of_known(graph: fx.GraphModule) -> bool:
    """Whether torch and backends alone give what is in a graph, shaped as they say.

    Of any other operation each result is compared with that, which takes a third of a microsecond.
    """
    parts = (part for part in graph.modules() if isinstance(part, fx.GraphModule))
    targets = (node.target for part in parts for node in part.graph.nodes)
    names = (of.namespace for of in targets if isinstance(of, OpOverload))
    return all(name in TORCH or name.startswith("implicitcore") for name in names)


def _graph_of(run: Any) -> CompiledFxGraph | None:
    """The graph in what ``torch.compile`` calls; None where this torch hides it."""
    while not isinstance(run, CompiledFxGraph):
        if (run := getattr(run, "__wrapped__", None)) is None:
            return None
    return run if callable(run.current_callable) else None


def kinds(tensors: Sequence[Tensor]) -> Kinds | None:
    """What a graph is chosen by; None where nothing is known of it by its tensors.

    Two that are one tensor are one argument of a graph.
    """
    if torch._C._len_torch_dispatch_stack():
        return None
    keys = torch._C._dispatch_keys
    found: list[Any] = []
    for t in tensors:
        if type(t) not in _KINDS:
            return None
        found.append((t.shape, t.stride(), t.dtype, t.requires_grad, keys(t).raw_repr(), t.device))
    places = [*map(id, tensors)]
    alike = None if len({*places}) == len(places) else tuple(map(places.index, places))
    return *found, alike


def guards(tensors: Sequence[Tensor]) -> TensorGuards | None:
    """Whether tensors are of the kinds of these, or may be not, in one call of C++.

    It takes no tensor twice: None where two of these are one.
    """
    if len({*map(id, tensors)}) < len(tensors):
        return None
    return TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)


def _place(value: Any, among: Iterable[Any]) -> int | None:
    """Where a tensor is among others."""
    if not isinstance(value, Tensor):
        return None
    return next((place for place, other in enumerate(among) if other is value), None)
