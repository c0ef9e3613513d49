from collections.abc import Callable
from dataclasses import dataclass

import pytest
from click.testing import Result
from support.sites import Site, hook

from implicitcore.cli.info import brief
from implicitcore.options.docstrings import first_paragraph
from implicitcore.options.kinds import CLASS_KINDS
from implicitcore.registry.registry import REGISTRY

Run = Callable[..., Result]

SKIP = """
from typing import Any
import implicitcore as ic
from implicitcore.ode_solvers.adams import Adams

class Skip(ic.ImplicitLayer):
    \"\"\"A layer for tests, see :class:`Predictor`.

    It has a second paragraph.

    Arguments:
        cell: f(z, x), a ``module``. More of it.
        channels: of the state, of which there
            are some.
        **options: those of the base.
        mode (str): of working.
    \"\"\"

    def __init__(
        self,
        cell: ic.Dynamics | Any,
        /,
        channels: int,
        *,
        root_solver: ic.RootSolver = ic.SteadyState(ode_solver=Adams(rtol=0.5)),
        chain: tuple[ic.RootSolver, ...] = (ic.Picard(tol=1.0),),
        mode: str = "mean",
        **options: Any,
    ) -> None:
        super().__init__(ic.FixedPoint(cell), solver=root_solver, **options)
"""


@pytest.fixture
def site_with_layer(site: Site) -> Site:
    body = (
        "registry.register('layer', 'skip', 'skip_code:Skip', summary='skips', "
        "requires=['no-such-dist', 'torch'])"
    )
    site.add("skip-dist", hook(body), files={"skip_code.py": SKIP})
    return site


def test_it_shows_the_call_the_options_and_the_first_paragraph(site_with_layer: Site, run: Run):
    lines = [" ".join(line.split()) for line in run("info", "layer", "skip").stdout.splitlines()]
    solver, chain = "SteadyState(ode_solver=Adams(rtol=0.5))", "(Picard(tol=1.0),)"
    assert lines == [
        "layer skip: skips",
        "provider: skip-dist 1.0",
        "class: skip_code:Skip",
        f"file: {site_with_layer.folder / 'skip_code.py'}",
        "requires: no-such-dist, torch (missing: pip install 'no-such-dist')",
        f"signature: Skip(cell, /, channels, *, root_solver={solver}, chain={chain}, "
        "mode='mean', gradient=None, start=None, "
        "horizon=1.0, backend=TorchBackend(), on_failure='warn', coupled=False)",
        "options:",
        "cell dynamics required f(z, x), a `module`",
        "channels int required of the state, of which there are some",
        f"root_solver root_solver default {solver}",
        f"chain list of root_solver default {chain}",
        "mode str default 'mean' of working",
        "gradient gradient or None default None default `Implicit()` with a root solver, "
        "`Unrolled()` with an ODE solver",
        "start start or None default None where z0 comes from; default zeros shaped like x",
        "horizon float > 0 default 1.0 the end time of an ODE solver",
        "backend backend or None default TorchBackend() the kernels of the inner loop; "
        "default torch",
        "on_failure 'raise' | 'warn' | 'mask' | 'ignore' default 'warn' what becomes of samples "
        "that do not converge",
        "coupled bool default False the samples depend on each other (nodes of a graph, batch "
        "norm in training, attention over the batch): the batch is solved as one, with one norm, "
        "one step and one stop test, and all of x belongs to it; else such a batch is an error "
        "where it is found",
        "",
        "A layer for tests, see Predictor.",
    ]


@pytest.mark.parametrize("kind", CLASS_KINDS)
def test_the_signature_of_every_part_can_be_called(kind: str, run: Run):
    import implicitcore as ic

    for part in REGISTRY.parts(kind):
        if part.provider != "implicitcore" or kind == "dynamics":
            continue
        line = next(
            line
            for line in run("info", kind, part.name).stdout.splitlines()
            if line.startswith("signature: ")
        )
        call = line.removeprefix("signature: ").replace("(*, ", "(").replace(", *, ", ", ")
        names = {name: getattr(ic, name) for name in dir(ic)}
        assert (
            eval(call, names | {part.load().__name__: part.load()}) == part.load()()
            or kind == "backend"
        )


def test_an_object_that_python_cannot_write_is_shown_by_its_class():
    assert brief(object()) == "object()"
    assert brief((1.0, "a")) == "(1.0, 'a')"


def test_a_part_that_cannot_be_imported_is_one_message(site: Site, run: Run):
    site.add("mine", hook("registry.register('backend', 'gone', 'no_such_module:X', summary='')"))
    result = run("info", "backend", "gone")
    assert (result.exit_code, result.stdout) == (1, "backend gone: \nprovider: mine 1.0\n")
    assert result.stderr.startswith(
        "Error: backend 'gone' of mine 1.0 cannot be imported: ModuleNotFoundError"
    )


def test_the_kind_may_be_left_out(site_with_layer: Site, run: Run):
    assert run("info", "skip").stdout == run("info", "layer", "skip").stdout
    assert run("info", "anderson").stdout == run("info", "root_solver", "anderson").stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("andersen", "no part is called 'andersen'; did you mean 'anderson'"),
        ("layer", "'info layer' lacks the NAME of a part: see 'list layer'"),
        ("reversible", "'reversible' is a root_solver and a gradient: say which"),
    ],
)
def test_a_name_alone_that_does_not_tell(name: str, message: str, run: Run):
    result = run("info", name)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_the_signature_that_a_dataclass_writes_is_no_docstring():
    @dataclass
    class Bare:
        tol: float = 0.5

    assert Bare.__doc__ == "Bare(tol: float = 0.5)"
    assert first_paragraph(Bare) == ""
    Bare.__doc__ = "Bare (and more).\n\nMore."
    assert first_paragraph(Bare) == "Bare (and more)."
