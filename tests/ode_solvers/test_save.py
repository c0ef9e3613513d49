"""What is saved at output times in place of the states, against a dense computation."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch

import implicitcore as ic

FINE = {"rtol": 1e-11, "atol": 1e-12, "max_steps": 5000}
SOLVERS = [
    ic.Tsit5(**FINE),
    ic.DOP853(**FINE),
    ic.RK4(dt=2e-3),
    ic.Adams(**FINE),
    ic.RadauIIA5(**FINE),
]
GRADIENTS = [ic.Unrolled(), ic.Checkpointed()]
TIMES = {
    "shared": [0.0, 0.1, 0.15, 0.7, 1.0],
    "each": [[0.0, 0.2, 0.5, 1.0], [0.0, 0.01, 0.02, 0.6], [0.3, 0.4, 0.9, 1.0]],
    "repeated": [[0.0, 0.2, 0.2, 1.0], [0.0, 0.5, 0.5, 0.5], [0.1, 0.1, 0.1, 0.1]],
    "backwards": [1.0, 0.6, 0.0],
}
each_gradient = pytest.mark.parametrize("gradient", GRADIENTS, ids=lambda g: type(g).__name__)


def real(*values):
    return torch.tensor(values, dtype=torch.float64)


def relative(found, expected):
    return max(((a - b).norm() / b.norm()).item() for a, b in zip(found, expected, strict=True))


class Linear:
    """dz/dt = z A + x from z0, and (z W t + x, |z|^2) of it: all by matrix exponentials."""

    def __init__(self):
        draw = torch.Generator().manual_seed(3)

        def drawn(*shape):
            value = torch.randn(shape, generator=draw, dtype=torch.float64) / 2
            return value.requires_grad_()

        self.z0, self.x, self.A, self.W = drawn(3, 4), drawn(3, 4), drawn(4, 4), drawn(4, 2)
        self.leaves = [self.z0, self.x, self.A, self.W]

    def field(self, z, x):
        return z @ self.A + x

    def save(self, t, z, x):
        return {"reading": (z @ self.W) * t + x[:, :2], "size": z.square().sum(1)}

    def dense(self, times):
        """What is saved, and the states at the end."""
        grid = times.expand(3, -1) if times.ndim == 1 else times
        one = real([1.0]).expand(3, 1)
        saved, states = [], []
        for column in grid.T:
            rows = []
            for i, t in enumerate(column):
                top = torch.cat((self.A, self.x[i : i + 1]), 0)
                grown = torch.cat((top, torch.zeros(5, 1, dtype=torch.float64)), 1)
                flow = torch.matrix_exp(grown * (t - grid[i, 0]))
                rows.append((torch.cat((self.z0, one), 1)[i] @ flow)[:4])
            states.append(torch.stack(rows))
            saved.append(self.save(column.unsqueeze(1), states[-1], self.x))
        return {name: torch.stack([each[name] for each in saved]) for name in saved[0]}, states[-1]


def loss(saved, end):
    return saved["reading"].pow(3).sum() + saved["size"].sin().sum() + end.exp().sum()


@each_gradient
@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_value_and_gradient_are_those_of_a_dense_computation(solver, times, gradient):
    problem = Linear()
    given = {"times": times, "solver": solver, "gradient": gradient, "save": problem.save}
    found = ic.integrate(problem.field, problem.z0, problem.x, hit_times=True, **given)
    saved, end = problem.dense(real(*times))
    assert relative([*found.z.values()], [*saved.values()]) < 1e-9
    assert relative([found.final().z], [end]) < 1e-9
    computed = torch.autograd.grad(loss(found.z, found.final().z), problem.leaves)
    expected = torch.autograd.grad(loss(saved, end), problem.leaves)
    assert relative(computed, expected) < 1e-8


@each_gradient
@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize(
    "solver",
    [ic.Tsit5(), ic.DOP853(), ic.RK4(dt=0.05), ic.Adams(), ic.RadauIIA5()],
    ids=lambda s: type(s).__name__,
)
def test_it_is_the_function_of_the_states_without_it(solver, times, gradient):
    """Also where output times are interpolated; the same steps are taken."""
    problem, grid = Linear(), real(*times)
    grid = grid.expand(3, -1) if grid.ndim == 1 else grid
    given = {"times": times, "solver": solver, "gradient": gradient}
    # Twice: whether it mixes samples is asked in the first solve of a function.
    _, plain = (ic.integrate(problem.field, problem.z0, problem.x, **given) for _ in range(2))
    rows = [
        problem.save(t.unsqueeze(1), z, problem.x) for t, z in zip(grid.T, plain.z, strict=True)
    ]
    expected = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    found = ic.integrate(problem.field, problem.z0, problem.x, save=problem.save, **given)
    assert relative([*found.z.values()], [*expected.values()]) < 1e-13
    assert torch.equal(found.steps, plain.steps)
    assert found.evaluations == plain.evaluations
    pairs = (found.z, found.final().z), (expected, plain.z[-1])
    found, expected = (torch.autograd.grad(loss(*pair), problem.leaves) for pair in pairs)
    assert relative(found, expected) < 1e-12


def test_second_derivatives_go_through_unrolled():
    problem = Linear()
    given = {"times": TIMES["shared"], "solver": SOLVERS[0], "save": problem.save}
    found = ic.integrate(problem.field, problem.z0, problem.x, **given)
    expected = problem.dense(real(*TIMES["shared"]))
    second = []
    for saved, end in ((found.z, found.final().z), expected):
        first = torch.autograd.grad(loss(saved, end), problem.leaves, create_graph=True)
        total = torch.stack([each.square().sum() for each in first]).sum()
        second.append(torch.autograd.grad(total, problem.leaves))
    assert relative(*second) < 1e-5  # of the interpolated times


@each_gradient
def test_parameters_of_a_module_have_a_gradient(gradient):
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 1).double()
    problem = Linear()

    def save(z, x):
        return head(z)

    given = {"times": TIMES["shared"], "solver": SOLVERS[0], "gradient": gradient}
    found = ic.integrate(problem.field, problem.z0, problem.x, save=save, **given).z
    plain = ic.integrate(problem.field, problem.z0, problem.x, **given).z
    grads = [torch.autograd.grad(z.exp().sum(), [*head.parameters()]) for z in (found, head(plain))]
    assert relative(*grads) < 1e-12


@each_gradient
@pytest.mark.parametrize("times", [[0.0, 0.5, 1.0, 2.0, 4.0], [[0.0, 3.0, 4.0], [0.0, 0.5, 1.0]]])
def test_at_an_event_it_is_of_the_state_and_the_time_there(times, gradient):
    """Decay from a to x: at t* = log(a / x), beyond which t z keeps t* x."""
    a, x = real([1.0], [3.0]).requires_grad_(), real([0.25], [0.5]).requires_grad_()
    given = {"times": times, "solver": SOLVERS[0], "gradient": gradient}
    event = ic.Event(lambda z, x: (z - x)[:, 0])
    found = ic.integrate(
        lambda z, x: -z, a, x, event=event, save=lambda t, z, x: t * z, hit_times=True, **given
    )
    happens = (a / x).log()
    grid = real(*times).expand(2, -1) if not isinstance(times[0], list) else real(*times)
    before = torch.minimum(grid, happens)
    saved = (before * a * torch.exp(-before)).T.unsqueeze(2)
    end = a * torch.exp(-torch.minimum(grid[:, -1:], happens))
    assert relative([found.z, found.final().z], [saved, end]) < 1e-9
    values = (
        (found.z.sin().sum() + found.final().z.exp().sum()),
        saved.sin().sum() + end.exp().sum(),
    )
    assert relative(*(torch.autograd.grad(value, [a, x]) for value in values)) < 1e-8


def live():
    """The bytes of all tensors that are alive."""
    storages = {}
    for thing in gc.get_objects():
        # Those of other tests as well, some of them without a storage: sparse, on the meta device.
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.layout is torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


@pytest.mark.parametrize(
    ("solver", "each", "hit_times"),
    [
        (ic.RK4(dt=0.05), False, False),
        (ic.RK4(dt=0.05), True, True),
        (ic.Tsit5(), True, False),
        (ic.Tsit5(), False, True),
    ],
    ids=str,
)
def test_memory_holds_what_is_saved_and_not_the_states(solver, each, hit_times):
    z0 = torch.ones(2, 10_000)
    state, times = z0.nbytes, torch.linspace(0, 1, 100, dtype=torch.float64)
    times = torch.stack((times, times.square() + times)) if each else times
    peak, before = [], live()

    def save(t, z, x):
        if bool((t == times[..., -1:]).any()):
            peak.append(live())
        return z[:, :3]

    given = {"times": times, "solver": solver, "hit_times": hit_times}
    with torch.no_grad():
        ic.integrate(lambda z, x: -z, z0, save=save, **given)
        assert max(peak) - before < 40 * state
        found = ic.integrate(lambda z, x: -z, z0, **given)
        assert live() - before > 99 * state
    assert len(found.z) == 100


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_it_is_asked_once_for_samples_that_come_by_together(solver):
    problem, seen = Linear(), []

    def save(t, z, x):
        seen.append(t)
        return z[:, 0]

    times = TIMES["shared"]
    ic.integrate(problem.field, problem.z0, problem.x, times=times, solver=solver, save=save)
    assert len(times) <= len(seen) <= 3 * len(times)
    if isinstance(solver, ic.RK4):  # whose samples take the same steps
        assert len(seen) == len(times)
    assert set(torch.cat(seen).flatten().tolist()) <= set(times)  # at no other time


@each_gradient
@pytest.mark.parametrize("hit_times", [False, True])
def test_it_meets_no_state_but_those_at_output_times(gradient, hit_times):
    """Where it is asked for some samples, one of these stands for each other."""
    seen, x = set(), real(1.0, 2.0)
    z0, times = real([1.0], [2.0]).requires_grad_(), real([0.0, 0.5, 2.0], [0.0, 1.9, 2.0])

    def save(t, z, x):
        exact = x * torch.exp(-x * t[:, 0])
        assert torch.allclose(z[:, 0], exact, rtol=1e-6)
        seen.update(zip(x.tolist(), t[:, 0].tolist(), strict=True))
        return z

    given = {"times": times, "solver": ic.Tsit5(**FINE), "gradient": gradient}
    found = ic.integrate(
        lambda z, x: -z * x[:, None], z0, x, save=save, hit_times=hit_times, **given
    )
    found.z.sum().backward()
    assert seen == {(i + 1.0, t) for i in range(2) for t in times[i].tolist()}


def test_it_goes_on_from_the_end():
    problem = Linear()
    whole = ic.integrate(
        problem.field, problem.z0, problem.x, times=[0.0, 0.5, 1.0], solver=SOLVERS[0]
    )
    first = ic.integrate(
        problem.field,
        problem.z0,
        problem.x,
        times=[0.0, 0.5],
        solver=SOLVERS[0],
        save=problem.save,
    )
    second = ic.integrate(
        problem.field, first.final().z, problem.x, times=[0.5, 1.0], solver=SOLVERS[0]
    )
    assert relative([second.z[-1]], [whole.z[-1]]) < 1e-8
    grads = [torch.autograd.grad(z[-1].sum(), problem.leaves[:3]) for z in (second.z, whole.z)]
    assert relative(*grads) < 1e-7


def test_the_states_are_between_the_times_too():
    problem = Linear()
    given: dict[str, Any] = {"times": TIMES["shared"], "solver": SOLVERS[0], "dense": True}
    found, plain = (
        ic.integrate(problem.field, problem.z0, problem.x, save=save, **given)
        for save in (problem.save, None)
    )
    t = real(0.05, 0.33)
    assert torch.equal(found.interpolate(t), plain.interpolate(t))
    steps = zip(found.at_steps(), plain.at_steps(), strict=True)
    assert all(torch.allclose(*pair, equal_nan=True) for pair in steps)


@each_gradient
def test_a_sample_that_fails_keeps_what_it_reached(gradient):
    """One runs out of steps, in another the field is NaN from t = 0.5 on."""
    z0, x = real([1.0], [1.0]).requires_grad_(), real([0.0], [1.0])

    def field(t, z, x):
        return torch.where((x > 0) & (t > 0.5), torch.nan, -z)

    given: dict[str, Any] = {"times": [0.0, 0.25, 0.5, 1.0], "gradient": gradient}
    given |= {"solver": ic.RK4(dt=0.05)}
    given |= {"on_failure": "ignore", "save": lambda t, z, x: torch.cat((t, t * z), 1)}
    found = ic.integrate(field, z0, x, **given)
    assert found.status.tolist() == [ic.Status.CONVERGED, ic.Status.NON_FINITE]
    assert bool(found.z.isfinite().all())
    (grad,) = torch.autograd.grad(found.z.sum(), z0)
    expected = (found.z[:, :1, 1:].sum() / z0[0]).detach()
    assert torch.allclose(grad, torch.stack((expected.view(1), real(0.0))), rtol=1e-6)
    given_masks: dict[str, Any] = given | {"on_failure": "mask"}
    masked = ic.integrate(field, z0, x, **given_masks)
    assert torch.equal(masked.z[:, 1], masked.z[:1, 1].expand(4, -1))
    assert torch.equal(masked.final().z[1], z0[1])
    alone = ic.integrate(field, z0[1:], x[1:], **given)
    assert torch.autograd.grad(alone.z.sum(), z0)[0].tolist() == [[0.0], [0.0]]
    short: dict[str, Any] = given | {"solver": ic.RK4(dt=0.05, max_steps=8)}
    found = ic.integrate(lambda z, x: -z, z0, x, **short)
    assert found.status.tolist() == [ic.Status.MAX_STEPS] * 2
    assert torch.allclose(found.z[-1, :, 0], real(0.4, 0.4))  # the time at which it ended
    (grad,) = torch.autograd.grad(found.z[-1].sum(), z0)
    assert torch.allclose(grad, (found.z[-1, :, 1:] / z0).detach())


@each_gradient
@pytest.mark.parametrize("solver", [ic.Tsit5(**FINE), ic.RadauIIA5(**FINE)])
def test_complex_states_and_pytrees(solver, gradient):
    """A rotation beside a decay; saved are a real number of the one and the other itself."""
    z0 = {"a": torch.tensor([[1.0 + 0j], [2j]]), "b": torch.ones(2, 2, 3, dtype=torch.complex64)}
    z0 = {name: z.to(torch.complex128).requires_grad_() for name, z in z0.items()}
    found = ic.integrate(
        lambda z, x: {"a": 1j * z["a"], "b": -z["b"]},
        z0,
        times=[0.0, 0.5, 1.0],
        solver=solver,
        gradient=gradient,
        save=lambda z, x: (z["a"] * z["b"].sum((1, 2)).unsqueeze(1)).real,
        hit_times=True,
    )
    t = real(0.0, 0.5, 1.0).view(3, 1, 1)
    expected = ((1j - 1) * t).exp() * z0["a"] * z0["b"].sum((1, 2)).unsqueeze(1)
    assert found.z.dtype == torch.float64
    assert relative([found.z], [expected.real]) < 1e-9
    grads = [torch.autograd.grad(z.sin().sum(), [*z0.values()]) for z in (found.z, expected.real)]
    assert relative(*grads) < 1e-8


@each_gradient
def test_a_coupled_batch_saves_what_belongs_to_all(gradient):
    problem = Linear()

    def field(z, x):
        return problem.field(z, x) - z.mean(0)

    given = {"times": TIMES["shared"], "solver": SOLVERS[0], "gradient": gradient, "coupled": True}
    plain = ic.integrate(field, problem.z0, problem.x, **given).z
    found = ic.integrate(field, problem.z0, problem.x, save=lambda z, x: z.mean(0), **given)
    assert relative([found.z], [plain.mean(1)]) < 1e-13
    grads = [
        torch.autograd.grad(z.exp().sum(), problem.leaves[:3]) for z in (found.z, plain.mean(1))
    ]
    assert relative(*grads) < 1e-11


def test_an_empty_batch_is_connected():
    problem = Linear()
    given = {"times": TIMES["shared"], "solver": SOLVERS[0], "save": lambda z, x: z @ problem.W}
    found = ic.integrate(problem.field, problem.z0[:0], problem.x[:0], **given)
    assert found.z.shape == (5, 0, 2)
    assert found.z.requires_grad


# torch's own: the rules of forward mode are compiled with torch.jit.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_forward_mode_goes_through():
    problem = Linear()

    def readings(z0):
        given = {"times": TIMES["shared"], "solver": SOLVERS[0], "save": problem.save}
        return ic.integrate(problem.field, z0, problem.x, **given).z["reading"]

    z0, v = problem.z0.detach(), torch.ones_like(problem.z0)
    found = torch.func.jvp(readings, (z0,), (v,))[1]
    step = 1e-5
    expected = (readings(z0 + step * v) - readings(z0 - step * v)) / (2 * step)
    assert relative([found], [expected]) < 1e-7


def test_a_layer_saves_too():
    problem = Linear()
    layer = ic.build("neural_ode", problem.field, ode_solver=SOLVERS[0])
    given = {"times": TIMES["each"], "save": problem.save}
    expected = ic.integrate(problem.field, problem.x, problem.x, solver=SOLVERS[0], **given)
    assert torch.equal(layer(problem.x, **given)["reading"], expected.z["reading"])
    found: Any = layer.solve(problem.x, **given)
    assert torch.equal(found.final().z, expected.final().z)
    with pytest.raises(ic.InputError, match="save: .* none were given: times="):
        layer(problem.x, save=problem.save)
    with pytest.raises(ic.ConfigError, match="save: a solve in a graph gives the states"):
        ic.compile(layer)(problem.x, **given)
    layer.gradient = ic.Adjoint()
    with pytest.raises(ic.GradientError, match="Adjoint goes back from the states"):
        layer(problem.x, **given)
    deq = ic.build("deq", lambda z, x: 0.5 * z + x)
    with pytest.raises(ic.InputError, match="save: "):
        deq(problem.x, save=problem.save)


@pytest.mark.parametrize("gradient", [ic.Adjoint(), ic.Implicit(), ic.ReversibleGradient()])
def test_a_strategy_without_its_states_says_so(gradient):
    problem = Linear()
    given = {"times": TIMES["shared"], "solver": SOLVERS[0], "gradient": gradient}
    with pytest.raises(ic.GradientError, match=f"{type(gradient).__name__} .* use Checkpointed"):
        ic.integrate(problem.field, problem.z0, problem.x, save=problem.save, **given)
    if isinstance(gradient, ic.Adjoint):
        with torch.no_grad():
            found = ic.integrate(problem.field, problem.z0, problem.x, save=problem.save, **given)
        expected = problem.dense(real(*TIMES["shared"]))[0]
        assert relative([*found.z.values()], [*expected.values()]) < 1e-5


@pytest.mark.parametrize(
    ("save", "complaint"),
    [
        (3, "save: expected a function of .* received 3"),
        (lambda t, z: z, r"save is called as f\(t, z, x\), and <lambda> takes \(t, z\)"),
        (lambda z, x: z.sum(), r"floating-point or complex tensors of shape \[3, ...\], received"),
        (lambda z, x: z.argmax(1), "received shape .* torch.int64"),
        (lambda z, x: z[:2], "received shape .2, 4"),
        (lambda z, x: [], "of shape .3, ...., received"),
        (lambda z, x: 1.0, "received 1.0"),
        (lambda t, z, x: z[:, : 1 + int(t.max() > 0.5)], "as at the first time, received shape"),
    ],
)
def test_what_cannot_be_saved(save, complaint):
    problem = Linear()
    with pytest.raises(ic.InputError, match=complaint):
        ic.integrate(problem.field, problem.z0, problem.x, times=TIMES["shared"], save=save)


@each_gradient
@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize(
    ("save", "name"),
    [
        (lambda z, x: z["a"].mul_(2), "state z"),
        (lambda z, x: z["b"].relu_(), "state z"),
        (lambda z, x: x.add_(1), "input x"),
        (lambda t, z, x: t.clone().mul_(2) + x.sub_(z["a"]), "input x"),
    ],
)
def test_it_writes_into_nothing_that_it_is_given(save, name, times, gradient):
    """The next step would begin with it, as that after an event function."""
    z0, x = {"a": torch.ones(3, 2).double(), "b": torch.ones(3, 1, 2).double()}, torch.ones(3, 2)
    given: dict[str, Any] = {"times": times, "gradient": gradient}
    with pytest.raises(ic.InputError, match=f"save writes into its {name} in place: .*clone"):
        ic.integrate(lambda z, x: z, z0, x.double(), save=save, **given)
    event = ic.Event(lambda t, z, x: (z["a"][:, 0] > 3) & (save(z, x).sum() < 0))
    if name == "state z":
        with pytest.raises(ic.InputError, match=f"event writes into its {name} in place"):
            ic.integrate(lambda z, x: z, z0, x.double(), event=event, **given)


def test_times_get_no_gradient():
    problem, times = Linear(), real(*TIMES["shared"]).requires_grad_()
    with pytest.raises(ic.GradientError, match="times.detach"):
        ic.integrate(problem.field, problem.z0, problem.x, times=times, save=problem.save)


@pytest.mark.parametrize("where", ["parameter", "leaf"])
def test_what_changed_since_the_solve_is_an_error(where):
    problem, scale = Linear(), [1.0, real(2.0).requires_grad_()]

    def save(t, z, x):
        if where == "leaf":
            return z * torch.where(t > 0.01, scale[1], 1.0) if bool((t > 0.01).any()) else z
        return scale[0] * z

    given = {"times": torch.linspace(0, 1, 9), "gradient": ic.Checkpointed()}
    found = ic.integrate(problem.field, problem.z0, problem.x, save=save, **given)
    scale[0] = 2.0
    complaint = "is not that of the solve" if where == "parameter" else "what is saved depends on"
    with pytest.raises(ic.GradientError, match=complaint):
        found.z.sum().backward()
