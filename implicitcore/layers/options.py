"""The options of a layer: each lives in one place, and is checked when it is assigned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from torch import nn

from implicitcore.errors import ConfigError, PluginError, show
from implicitcore.options.option import Option
from implicitcore.options.options import PartMeta, options_of
from implicitcore.options.signatures import call_signature

T = TypeVar("T")
Value = TypeVar("Value", covariant=True)


class LayerMeta(PartMeta):
    """The class of the classes of layers: a new layer remembers what its configuration builds."""

    def __call__(cls: type[T], *args: Any, **options: Any) -> T:
        layer = super().__call__(*args, **options)  # pyright: ignore[reportAttributeAccessIssue]
        unsaid = UNSAID[:1] if "start" in call_signature(cls).parameters else UNSAID
        built = {name: type(getattr(layer, name)) for name in unsaid}
        object.__setattr__(layer, "_built_with", built)
        return layer

    def checked_options(cls) -> Mapping[str, Option]:
        """Those that are kept by a :class:`LayerOption` or an :class:`OptionOf`."""
        try:
            known = options_of(cls)
        except PluginError:
            return {}
        return {
            name: option
            for name, option in known.items()
            if isinstance(getattr(cls, name, None), OPTIONS)
        }


UNSAID = ("dynamics", "start")
"""The parts of a layer that its configuration does not say: its class says them.

A layer whose start is an option of its own says that.
"""


class LayerOption(Generic[Value]):
    """An option whose value is kept on the layer; it can be assigned under any of its attributes.

    A value of another type or out of bounds is a :class:`ConfigError`, and names and mappings
    become the parts that they name.

    Arguments:
        name: the option, as the ``__init__`` of the class with this attribute has it.
        default: what None stands for, from the layer.
    """

    def __init__(self, name: str, default: Callable[[Any], Value] | None = None) -> None:
        self.name, self.default = name, default
        self.owner: type = object

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner = owner

    @overload
    def __get__(self, layer: None, owner: type) -> Self: ...
    @overload
    def __get__(self, layer: nn.Module, owner: type) -> Value: ...

    def __get__(self, layer: nn.Module | None, owner: type) -> Self | Value:
        if layer is None:
            return self
        kept = vars(layer)
        if self.name in kept:
            return kept[self.name]
        if self.name in kept["_modules"]:
            return kept["_modules"][self.name]
        raise AttributeError(f"{type(layer).__name__} has no {self.name} yet")

    if TYPE_CHECKING:  # without it python reads an option that is no module from the layer itself

        def __set__(self, layer: nn.Module, value: Any) -> None: ...

    def assign(self, layer: nn.Module, value: Any) -> None:
        """Keep a value on a layer."""
        value = checked(self.owner, self.name, value)
        if value is None and self.default is not None:
            value = self.default(layer)
        if isinstance(value, nn.Module):
            nn.Module.__setattr__(layer, self.name, value)
        else:
            vars(layer)[self.name] = value


class OptionOf:
    """An option that is an attribute of a part of the layer, and kept there alone.

    Arguments:
        part: the layer's attribute that holds the part.
        name: the option.
        attribute: of the part; by default the same name.
    """

    def __init__(self, part: str, name: str, attribute: str = "") -> None:
        self.part, self.name, self.attribute = part, name, attribute or name
        self.owner: type = object

    def __set_name__(self, owner: type, name: str) -> None:
        self.owner = owner

    def __get__(self, layer: nn.Module | None, owner: type) -> Any:
        return self if layer is None else getattr(self._holder(layer), self.attribute)

    def __set__(self, layer: nn.Module, value: Any) -> None:
        self.assign(layer, value)

    def assign(self, layer: nn.Module, value: Any) -> None:
        """Give the part a value."""
        value, holder = checked(self.owner, self.name, value), self._holder(layer)
        if getattr(getattr(type(holder), self.attribute, None), "fset", self) is None:
            raise ConfigError(
                [f"{self.name}: belongs to the learned {self.part} and cannot be changed"]
            )
        if self.attribute in getattr(holder, "_modules", ()):
            delattr(holder, self.attribute)  # a function may follow a module
        setattr(holder, self.attribute, value)

    def _holder(self, layer: nn.Module) -> Any:
        holder = getattr(layer, self.part)
        if not hasattr(holder, self.attribute):
            raise ConfigError([f"{self.name}: {replaced(layer, self.part)}"])
        return holder


OPTIONS = (LayerOption, OptionOf)
"""The descriptors of options."""


LIKENESS = 0.8
"""From 0 to 1: how near the name of a new attribute is to an option, so that it is one misspelt."""


def assign(layer: nn.Module, name: str, value: Any) -> bool:
    """Assign an option through its checks, which ``nn.Module`` passes by for modules.

    Returns:
        Whether it is one.

    Raises:
        ConfigError: the value is none of the option's; or the name is nearly that of an option, or
            is one of the solver's or the gradient's, and there is no such attribute. A class may
            have attributes of its own: those that it has from its ``__init__``, and where it is
            neither this library's nor final any others.
    """
    cls = type(layer)
    option = getattr(cls, name, None)
    if isinstance(option, OPTIONS):
        option.assign(layer, value)
        return True
    ours = cls.__module__.startswith("implicitcore") or "__final__" in vars(cls)
    if ours and "_built_with" in vars(layer) and name[0] != "_" and not hasattr(layer, name):
        _refuse_misspelt(layer, name)
    return False


def _refuse_misspelt(layer: nn.Module, name: str) -> None:
    homes = dict.fromkeys(options_of(type(layer)), "")
    for slot in ("gradient", "solver"):
        part = getattr(layer, slot)
        homes |= dict.fromkeys(getattr(part, "__dataclass_fields__", ()), slot)
    near = get_close_matches(name, homes, n=1, cutoff=LIKENESS)
    if not near:
        return
    owner, slot = type(layer).__name__, homes[near[0]]
    if not slot:
        raise ConfigError([f"{name}: no option of {owner}; did you mean {near[0]!r}?"])
    how = f'layer.{slot} = {{"name": ..., "{near[0]}": ...}}'
    once = f", or layer(x, {near[0]}=...) for one call" if slot == "solver" else ""
    raise ConfigError(
        [f"{name}: no option of {owner}; {near[0]} is one of its {slot}: {how}{once}"]
    )


def replaced(layer: nn.Module, part: str) -> str:
    """What is said of an option of a part that was replaced."""
    return (
        f"the layer's {part} was replaced by {show(getattr(layer, part))}, and no option of "
        f"{type(layer).__name__} says so"
    )


def checked(owner: type, name: str, value: Any) -> Any:
    """The value of an option of a class, read.

    Raises:
        ConfigError: it is of another type or out of bounds.
    """
    value, problems = options_of(owner)[name].read(value)
    if problems:
        raise ConfigError(problems)
    return value
