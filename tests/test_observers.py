import threading

import pluggy
import pytest
import torch
from support.operations import Operations
from support.sites import HEADER, Site, registers, run_python

import implicitcore as ic
from implicitcore.layers import observers
from implicitcore.registry.registry import Registry

X = torch.ones(2, 3)
HEARS = f"""{HEADER}
heard = []
@hookimpl
def implicitcore_after_solve(solution):
    heard.append(solution)
"""


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch):
    """No observer but those of the test, and none of them left after it."""
    monkeypatch.setattr(observers, "active", ())
    monkeypatch.setattr(observers, "_of_plugins", ())


class Cell(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, z, x):
        return torch.tanh(0.3 * self.linear(z) + x)


class Recorder:
    def __init__(self):
        self.heard = []

    def implicitcore_after_solve(self, layer, solution):
        self.heard.append((layer, solution))


@pytest.fixture
def layer():
    return ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=ic.Anderson(tol=1e-4))


def test_an_observer_gets_the_layer_and_the_very_solution(layer):
    recorder = Recorder()
    with ic.observe(recorder):
        solution = layer.solve(X)
        z = layer(X)
    layer.solve(X)
    assert [heard for heard, _ in recorder.heard] == [layer, layer]
    assert recorder.heard[0][1] is solution
    assert recorder.heard[1][1].z is z
    assert solution.start is not None
    assert solution.evaluations > 1


def test_each_takes_what_it_wants(layer):
    got = []

    def everything(**given):
        got.append(set(given))

    def nothing():
        got.append(set())

    def with_a_default(solution, place=got):
        place.append(type(solution))

    with (
        ic.observe(everything),
        ic.observe(nothing),
        ic.observe(lambda layer: got.append(layer)),
        ic.observe(with_a_default),
    ):
        layer.solve(X)
    assert got == [{"layer", "solution"}, set(), layer, ic.Solution]


def test_a_handle_removes_its_own_and_does_so_once(layer):
    recorder = Recorder()
    first, second = ic.observe(recorder), ic.observe(recorder)
    first.remove()
    first.remove()
    layer.solve(X)
    assert len(recorder.heard) == 1
    second.remove()
    assert observers.active == ()


class Misspelt:
    def implicitcore_after_solv(self, solution): ...


@pytest.mark.parametrize(
    ("observer", "message"),
    [
        (
            3,
            r"expected a function, or an object with a method "
            r"implicitcore_after_solve\(layer, solution\); received 3",
        ),
        (Recorder, r"call it: Recorder\(\)"),
        (Misspelt(), "received a Misspelt object; did you mean 'implicitcore_after_solv'"),
        (lambda solutoin: None, "takes 'solutoin'; did you mean 'solution'"),
        (
            lambda solution, extra: None,
            "takes 'extra': its arguments are layer and solution, by these names",
        ),
        (lambda solution, /: None, "takes 'solution'"),
        ([].append, "takes 'object'"),
    ],
)
def test_what_cannot_be_an_observer_is_refused(observer, message):
    with pytest.raises(ic.InputError, match=message):
        ic.observe(observer)
    assert observers.active == ()


def test_an_error_in_an_observer_names_it_and_reaches_the_user(layer):
    def broken(solution):
        raise KeyError("mine")

    later = Recorder()
    with ic.observe(broken), ic.observe(later), pytest.raises(KeyError, match="mine") as caught:
        layer(X)
    [note] = caught.value.__notes__
    assert "broken" in note
    assert note.endswith("after a solve of ImplicitLayer")
    with ic.observe(later):
        layer(X)
    assert len(later.heard) == 1


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("solver", [ic.Anderson(tol=1e-4), ic.Tsit5()])
@pytest.mark.parametrize("name", ["z", "status", "steps"])
def test_an_observer_that_writes_into_the_solution_is_an_error(name, solver, mode):
    layer = ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=solver)

    def scribbles(solution):
        getattr(solution, name).detach().zero_()

    def looks(solution):
        return getattr(solution, name) * 2

    with mode(), ic.observe(looks):
        layer(X)
        with ic.observe(scribbles), pytest.raises(ic.InputError, match="in place") as caught:
            layer(X)
    assert "scribbles" in caught.value.__notes__[0]


def test_a_failed_solve_is_heard_of_before_the_layer_raises():
    layer = ic.ImplicitLayer(ic.FixedPoint(lambda z, x: z * torch.nan + x), solver=ic.Picard())
    recorder = Recorder()
    with ic.observe(recorder), pytest.raises(ic.SolveError):
        layer(X)
    assert recorder.heard[0][1].status.tolist() == [ic.Status.NON_FINITE] * 2


def test_what_an_observer_solves_is_not_observed(layer):
    heard = []

    def solve_again(layer):
        heard.append(layer.solve(X).evaluations)

    with ic.observe(solve_again):
        layer.solve(X)
        layer.solve(X)
    assert len(heard) == 2


@pytest.mark.parametrize("gradient", [ic.Unrolled(), ic.Adjoint(), ic.Checkpointed()], ids=str)
def test_nested_layers_are_heard_of_and_backward_passes_are_not(gradient):
    """Adjoint and Checkpointed evaluate the field, and so the inner layer, once more on their way
    back."""
    inner = ic.ImplicitLayer(ic.FixedPoint(Cell()), solver=ic.Picard(tol=1e-5))
    calls = []

    def field(z, x):
        calls.append(torch._C._current_graph_task_id() != -1)
        return inner(x) - z

    outer = ic.ImplicitLayer(
        ic.VectorField(field, autonomous=True), solver=ic.RK4(dt=0.5), gradient=gradient
    )
    x, recorder = X.clone().requires_grad_(), Recorder()
    with ic.observe(recorder):
        z = outer(x)
        forward = [layer for layer, _ in recorder.heard]
        z.sum().backward()
    assert forward[-1] is outer
    assert forward[:-1] == [inner] * calls.count(False)
    assert len(recorder.heard) == len(forward)
    assert (True in calls) == (gradient != ic.Unrolled())


def test_the_backward_record_is_filled_later(layer):
    recorder = Recorder()
    with ic.observe(recorder):
        z = layer(X.clone().requires_grad_())
        backward = recorder.heard[0][1].backward
        assert backward.vjps == 0
        z.sum().backward()
    assert backward.vjps > 0
    assert len(recorder.heard) == 1


def test_observers_work_in_inference_mode(layer):
    recorder = Recorder()
    with ic.observe(recorder), torch.inference_mode():
        z = layer(X)
    assert recorder.heard[0][1].z is z


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # Dynamo looks there
def test_observers_work_in_a_compiled_model(layer):
    recorder = Recorder()
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), layer)
    compiled = torch.compile(model, backend="eager")
    with ic.observe(recorder):
        assert torch.equal(compiled(X), model(X))
    compiled(X)
    assert [heard for heard, _ in recorder.heard] == [layer, layer]


def test_observers_hear_of_every_thread(layer):
    recorder = Recorder()
    with ic.observe(recorder):
        threads = [threading.Thread(target=layer.solve, args=(X,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(recorder.heard) == 8


def test_telling_an_observer_reads_no_tensor(layer):
    counts = []
    for observed in (False, True):
        handle = ic.observe(Recorder()) if observed else None
        with Operations() as operations:
            layer.solve(X)
        counts.append(operations.names)
        if handle:
            handle.remove()
    assert counts[0] == counts[1]


def test_a_solve_that_nobody_observes_calls_nothing(layer, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_, **__):
        raise AssertionError("called")

    for place, name in (
        (observers, "notify"),
        (pluggy.HookCaller, "__call__"),
        (torch._C, "_current_graph_task_id"),
    ):
        monkeypatch.setattr(place, name, refuse)
    z = layer(X.clone().requires_grad_())
    monkeypatch.undo()
    assert z.requires_grad


def discover() -> dict:
    return {plugin.name: plugin for plugin in Registry().plugins()}


def test_a_plugin_may_only_observe(site: Site, layer):
    import importlib

    module = importlib.import_module(site.add("mine", HEARS))
    layer.solve(X)
    assert not module.heard
    plugin = discover()["mine"]
    assert (plugin.status, plugin.parts, len(plugin.observers)) == ("ok", (), 1)
    solution = layer.solve(X)
    # a second discovery, as a page of the documentation makes one, tells it no more often
    discover()
    recorder = Recorder()
    with ic.observe(recorder):
        again = layer.solve(X)
    assert module.heard[0] is solution
    assert module.heard[1] is again is recorder.heard[0][1]
    assert len(module.heard) == 2


def test_a_plugin_may_register_and_observe(site: Site):
    site.add("mine", registers("mine", "a:B") + HEARS.removeprefix(HEADER))
    plugin = discover()["mine"]
    assert (len(plugin.parts), len(plugin.observers)) == (1, 1)


def test_an_error_in_an_observer_of_a_plugin_names_the_plugin(site: Site, layer):
    site.add("mine-dist", HEARS.replace("heard.append(solution)", "1 / 0"), entry="mine")
    discover()
    with pytest.raises(ZeroDivisionError) as caught:
        layer(X)
    assert caught.value.__notes__ == [
        "in the observer implicitcore_after_solve of the plugin 'mine' of mine-dist, after "
        "a solve of ImplicitLayer"
    ]


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (
            HEARS.replace("after_solve", "after_solv"),
            "unknown hook 'implicitcore_after_solv'; did you mean 'implicitcore_after_solve'? "
            "(hooks: implicitcore_after_solve, implicitcore_register)",
        ),
        (HEARS.replace("(solution)", "(solutions)", 1), "PluginValidationError"),
        (
            HEARS.replace("@hookimpl\n", "@hookimpl(wrapper=True)\n").replace(
                "heard.append(solution)", "yield"
            ),
            "and wraps none",
        ),
        (
            HEARS.replace("@hookimpl\n", ""),
            "implicitcore_after_solve has no marker: put @hookimpl above it",
        ),
        (
            HEARS.replace("@hookimpl\n", "import pluggy\n@pluggy.HookimplMarker('other')\n"),
            "implicitcore_after_solve has the marker of 'other'",
        ),
        (
            registers("x", "a:B") + HEARS.removeprefix(HEADER).replace("@hookimpl\n", ""),
            "implicitcore_after_solve has no marker",
        ),
        (HEARS + "\n@hookimpl\ndef implicitcore_register(registry): 1 / 0", "ZeroDivisionError"),
    ],
)
def test_the_observer_of_a_broken_plugin_hears_nothing(site: Site, source, cause):
    site.add("bad", source)
    with pytest.warns(ic.PluginWarning) as caught:
        plugin = discover()["bad"]
    assert cause in str(caught[0].message)
    assert (plugin.status, plugin.observers, observers.active) == ("broken", (), ())


PROGRAM = """
import torch, implicitcore as ic
layer = ic.ImplicitLayer(ic.FixedPoint(lambda z, x: 0.5 * z + x), solver=ic.Picard())
layer(torch.ones(2, 3))
ic.create("root_solver", "picard")
layer(torch.ones(2, 3))
import mine_plugin
print(len(mine_plugin.heard))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("disabled", "heard"), [("", "1"), ("mine", "0")])
def test_the_first_use_of_a_name_makes_plugins_hear(tmp_path, disabled, heard):
    site = Site(tmp_path)
    site.add("mine", HEARS)
    done = run_python("-c", PROGRAM, path=(site,), IMPLICITCORE_DISABLE_PLUGINS=disabled)
    assert (done.stdout.strip(), done.stderr) == (heard, "")
