"""Random specifications and files of configurations."""

from __future__ import annotations

import json
import random
import reprlib
import tempfile
from pathlib import Path
from typing import Any

import implicitcore as ic
from honesty.finding import Case
from implicitcore.options.kinds import NAMED_KINDS
from implicitcore.options.options import options_of
from implicitcore.registry.registry import REGISTRY

_KINDS = tuple(
    kind
    for kind in NAMED_KINDS
    if kind in ("layer", "root_solver", "ode_solver", "gradient", "backend", "dynamics")
)


def config_call(rng: random.Random) -> Case:
    """A call that reads a configuration."""
    return rng.choice((_create, _create, _build, _file, _prepare))(rng)


def _create(rng: random.Random) -> Case:
    kind = rng.choice(_KINDS) if rng.random() < 0.95 else _value(rng, 2)
    spec = _spec(rng, kind, 3)
    cell = (_cell,) if kind in ("layer", "dynamics") else ()
    told = f"create({_short(kind)}, {_short(spec)})"
    return Case(told, lambda: ic.create(kind, spec, *cell), _again)


def _build(rng: random.Random) -> Case:
    spec = _spec(rng, "layer", 3)
    return Case(f"build({_short(spec)})", lambda: ic.build(spec, _cell), _again)


def _prepare(rng: random.Random) -> Case:
    from implicitcore.config.build import prepare

    kind = rng.choice(_KINDS)
    spec = _spec(rng, kind, 3)
    told = f"prepare({kind}, {_short(spec)})"
    return Case(told, lambda: prepare(kind, spec), lambda found: "")


def _file(rng: random.Random) -> Case:
    suffix = rng.choice((".json", ".yaml", ".yml", ".toml", ""))
    text = _text_of_file(rng, suffix)

    def call() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"a{suffix}")
            path.write_bytes(text)
            return ic.build(ic.load_config(path), _cell)

    return Case(f"load_config({suffix}: {text[:60]!r})", call, _again)


def _short(value: Any) -> str:
    return reprlib.repr(value)[:200]


def _cell(z: Any, x: Any) -> Any:
    return 0.5 * z + x


def _again(part: Any) -> str:
    """Whether the description of a part makes another part."""
    from implicitcore.config.build import describe

    kind = type(part).kind
    data = describe(part)
    cell = (_cell,) if kind in ("layer", "dynamics") else ()
    other = describe(ic.create(kind, data, *cell))
    return "" if data == other else f"{data} became {other}"


def _spec(rng: random.Random, kind: Any, depth: int) -> Any:
    """A specification of a part: mostly a mapping with a known name and some options."""
    if rng.random() < 0.1 or kind not in NAMED_KINDS:
        return _value(rng, depth)
    part = rng.choice(REGISTRY.parts(kind))
    if rng.random() < 0.1:
        return part.name
    spec: dict[Any, Any] = {"name": part.name}
    known = list(options_of(part.load()).values())
    for option in rng.sample(known, min(len(known), rng.randint(0, 3))):
        kinds = option.slot.kinds if option.slot else ()
        if kinds and depth and rng.random() < 0.8:
            inner = _spec(rng, rng.choice(kinds), depth - 1)
            spec[option.name] = [inner] if option.slot and option.slot.many else inner
        elif rng.random() < 0.4:
            spec[option.name] = option.default if _is_data(option.default) else None
        else:
            spec[option.name] = _value(rng, depth)
    if rng.random() < 0.15:
        spec[_value(rng, 0) if rng.random() < 0.5 else "toll"] = _value(rng, 1)
    return spec


def _is_data(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _value(rng: random.Random, depth: int) -> Any:
    """Anything; hashable where ``depth`` is 0."""
    plain: list[Any] = [
        None, True, False, 0, 1, -1, 3, 10**30, 10**400, 0.5, -0.5, 1e-3, 1e300, 1e-320,
        float("inf"), float("-inf"), float("nan"), "", "1e-5", "anderson", "tsit5", "torch",
        "auto", "name", "\x1b[31mred", "a\x00b", "x" * 20_000, "ü" * 3, b"bytes", ("a", 1), 1j,
        print, int, object(), frozenset((1,)), "inf", ".inf", "nan", "1_000",
        "implicitcore:anderson", "os:system", "no:such:name",
    ]  # fmt: skip
    if not depth or rng.random() < 0.7:
        return rng.choice(plain)
    return rng.choice((_list, _mapping, _deep, _cyclic))(rng, depth)


def _list(rng: random.Random, depth: int) -> Any:
    return [_value(rng, depth - 1) for _ in range(rng.randint(0, 3))]


def _mapping(rng: random.Random, depth: int) -> Any:
    return {_value(rng, 0): _value(rng, depth - 1) for _ in range(rng.randint(0, 3))}


def _deep(rng: random.Random, depth: int) -> Any:
    found: Any = "end"
    wrap = rng.choice(
        (
            lambda inner: [inner],
            lambda inner: {"name": "steady_state", "ode_solver": inner},
            lambda inner: {"name": "chain", "solvers": [inner]},
            lambda inner: {"name": "homotopy", "corrector": inner},
        )
    )
    for _ in range(rng.choice((5, 100, 5000))):
        found = wrap(found)
    return found


def _cyclic(rng: random.Random, depth: int) -> Any:
    if rng.random() < 0.5:
        items: list[Any] = [1]
        items.append(items)
        return items
    mapping: dict[str, Any] = {"name": "homotopy"}
    mapping["corrector"] = mapping
    return mapping


def _text_of_file(rng: random.Random, suffix: str) -> bytes:
    """The text of a file: a good one, one with damages, or a hard one."""
    if rng.random() < 0.3:
        return rng.choice(_HARD)
    spec = _spec(rng, "layer", 2)
    try:
        text = json.dumps(spec, default=str).encode()
    except (ValueError, TypeError, RecursionError):
        text = b'{"name": "deq"}'
    damaged = bytearray(text)
    for _ in range(rng.choice((0, 0, 1, 3))):
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    return bytes(damaged)


_HARD = (
    b"[" * 5000,
    b"[" * 5000 + b"]" * 5000,
    b'{"name":' * 3000 + b"1" + b"}" * 3000,
    b'{"name": "deq", "root_solver": '
    + b'{"name": "homotopy", "corrector": ' * 2000
    + b"1"
    + b"}" * 2001,
    b"name: &a [*a]",
    b"&a {name: deq, root_solver: *a}",
    b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: &d [*c, *c]\nname: *d",
    b"!!python/object/apply:os.system ['true']",
    b"? [1, 2]\n: 3",
    b"? {a: 1}\n: 3",
    b"{a: 1, a: 2}",
    b'{"a": 1, "a": 2}',
    b"\xff\xfe\x00",
    b"\x1b[31m: 1",
    b'{"\\u001b[31m": 1}',
    b"",
    b"null",
    b"name: deq\ntol: .inf",
    b"- - - -",
    b"name: 2026-01-01",
    b"name: " + b"9" * 5000,
    b'{"name": ' + b"9" * 5000 + b"}",
    b"name: |\n" + b"  x\n" * 5000,
    b"{name: deq, root_solver: {name: anderson, depth: 1e400}}",
    b"name: deq\n" + b"".join(b"k%d: 1\n" % i for i in range(2000)),
)
