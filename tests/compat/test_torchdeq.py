"""TorchDEQ's functions on our solvers: against closed forms, and against TorchDEQ where it is
installed."""

from __future__ import annotations

import argparse
import importlib
import time
import warnings

import pytest
import torch
from support.sites import run_python
from torch import nn

import implicitcore as ic
from implicitcore.compat import torchdeq as ours
from implicitcore.compat.torchdeq import loss as our_loss

TIGHT = {"f_tol": 1e-9, "b_tol": 1e-9, "f_max_iter": 200, "b_max_iter": 200}


@pytest.fixture
def theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchdeq", reason="TorchDEQ is not installed to compare with")


class Cell(nn.Module):
    """Injection, one weight, and a contraction."""

    def __init__(self, n: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inject, self.linear = nn.Linear(n, n).double(), nn.Linear(n, n).double()

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + self.inject(x))


def batch(n: int = 6) -> torch.Tensor:
    return torch.randn(5, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(library, options, correction=None):
    """States and gradients of a loss on them, as a user of TorchDEQ writes it."""
    cell, x = Cell(), batch().requires_grad_()
    deq = library.get_deq(**options)
    zs, info = deq(lambda z: cell(z, x), torch.zeros_like(x))
    if correction is None:
        total = sum(z.square().sum() for z in zs)
    else:
        total = library.fp_correction(lambda z: z.square().sum(), (zs,), weight_func=correction)
    assert isinstance(total, torch.Tensor)
    return zs, info, torch.autograd.grad(total, [x, *cell.parameters()])


CASES = {
    "phantom": {},
    "phantom of 4 damped steps": {"grad": 4, "tau": 0.7},
    "ift": {"ift": True},
    "hook_ift": {"hook_ift": True},
    "anderson": {"f_solver": "anderson", "ift": True},
    "broyden": {"f_solver": "broyden", "b_solver": "broyden", "ift": True},
    "relative": {"f_stop_mode": "rel", "b_stop_mode": "rel", "ift": True},
    "simple": {"f_solver": "simple_fixed_point_iter"},
    "n_states": {"n_states": 3, "f_max_iter": 9, "f_tol": 1e-30},
    "n_states and ift": {"n_states": 3, "ift": True, "f_max_iter": 60, "f_tol": 1e-30},
    "indexing": {"indexing": [3, 1], "f_max_iter": 6, "f_tol": 1e-30},
    "grad of each state": {"n_states": 2, "grad": [1, 3], "f_max_iter": 7, "f_tol": 1e-30},
    "sup_gap": {"grad": 4, "sup_gap": 2, "f_max_iter": 4, "f_tol": 1e-30},
    "sup_loc": {"grad": 4, "sup_loc": [1, 3], "f_max_iter": 4, "f_tol": 1e-30},
}


@pytest.mark.parametrize("correction", [None, "exp", "linear"])
@pytest.mark.parametrize("core", ["indexing", "sliced"])
@pytest.mark.parametrize("case", CASES)
def test_states_and_gradients_are_torchdeqs(theirs, case, core, correction):
    options = TIGHT | CASES[case] | {"core": core}
    zs, _, found = gradients(ours, options, correction)
    expected_zs, _, expected = gradients(theirs, options, correction)
    assert len(zs) == len(expected_zs)
    for z, right in zip(zs, expected_zs, strict=True):
        torch.testing.assert_close(z, right, atol=1e-4, rtol=1e-4)
    for grad, right in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, right, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("solver", ["fixed_point_iter", "anderson", "broyden"])
@pytest.mark.parametrize("eval_options", [{"eval_factor": 0.1}, {"eval_f_max_iter": 30}, {}])
def test_evaluation_is_torchdeqs(theirs, solver, eval_options):
    cell, x = Cell(), batch()
    options = {"f_solver": solver, "f_max_iter": 40, "f_tol": 1e-7} | eval_options
    (z,), info = ours.get_deq(**options).eval()(lambda z: cell(z, x), torch.zeros_like(x))
    (right,), expected = theirs.get_deq(**options).eval()(lambda z: cell(z, x), torch.zeros_like(x))
    exact = 1e-4 if eval_options.get("eval_factor") is None else 0.05
    assert not z.requires_grad
    assert (z - right).abs().max() < exact
    assert info["abs_lowest"].shape == expected["abs_lowest"].shape == (5,)
    assert info["nstep"].shape == expected["nstep"].shape
    assert info["abs_trace"].shape[0] == 5


README = """
import argparse
import torch
from LIBRARY import add_deq_args, get_deq
from LIBRARY.norm import apply_norm, reset_norm
from LIBRARY.loss import fp_correction

parser = argparse.ArgumentParser()
add_deq_args(parser)
args = parser.parse_args(["--f_tol", "1e-6", "--ift", "--n_states", "2"])
torch.manual_seed(0)
weight = torch.nn.Linear(4, 4)
apply_norm(weight, args=args)
deq = get_deq(args)


def fn(a, b, c):
    return torch.tanh(0.5 * weight(b)) + 1, 0.5 * torch.sin(c), 0.3 * a


reset_norm(weight)
z_out, info = deq(fn, (torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 4)))
loss = fp_correction(lambda z: z[0].sum(), (z_out,), gamma=args.gamma)
loss.backward()
gradients = [parameter.grad for parameter in weight.parameters()]
"""


def test_the_readme_by_the_changed_import_alone(theirs):
    del theirs
    spaces = []
    for library in ("implicitcore.compat.torchdeq", "torchdeq"):
        space: dict = {}
        exec(README.replace("LIBRARY", library), space)
        spaces.append(space)
    mine, right = spaces
    assert len(mine["z_out"]) == len(right["z_out"]) == 2
    for state, expected in zip(mine["z_out"], right["z_out"], strict=True):
        assert isinstance(state, list) and len(state) == 3
        for z, other in zip(state, expected, strict=True):
            torch.testing.assert_close(z, other, atol=1e-4, rtol=1e-4)
    sizes = [sum(grad.square().sum() for grad in it["gradients"]) for it in spaces]
    torch.testing.assert_close(sizes[0], sizes[1], atol=1e-3, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"f_solver": "anderson", "b_solver": "anderson", "ift": True},
        {"f_solver": "broyden", "b_solver": "broyden", "ift": True},
        {"ift": True},
        {"grad": 5},
        {"n_states": 3},
    ],
    ids=["anderson", "broyden", "fixed_point_iter", "phantom", "states"],
)
def test_a_training_step_takes_no_longer_than_torchdeqs(theirs, options):
    """The least of several steps of each, in turns; CPU time, as other work may run beside."""
    cell = Cell(64).float()
    x = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
    common = {"f_stop_mode": "rel", "f_tol": 1e-4, "b_tol": 1e-4}
    modules = [library.get_deq(**options, **common) for library in (ours, theirs)]

    def step(deq) -> float:
        began = time.process_time()
        zs, _ = deq(lambda z: cell(z, x), torch.zeros_like(x))
        torch.stack([z.square().sum() for z in zs]).sum().backward()
        return time.process_time() - began

    times = [[step(deq) for deq in modules] for _ in range(25)]
    mine, right = (min(each) for each in zip(*times, strict=True))
    print(f"ours {1e3 * mine:.2f} ms, TorchDEQ's {1e3 * right:.2f} ms: {mine / right:.2f}")
    assert mine <= right


def test_without_torchdeq_the_gradient_is_exact():
    """z = a z + x for one closure: z* = x / (1 - a)."""
    a = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = batch().requires_grad_()
    deq = ours.get_deq(ift=True, **TIGHT)
    (z,), info = deq(lambda z: a * z + x, torch.zeros_like(x))
    torch.testing.assert_close(z, 2 * x, atol=1e-8, rtol=1e-8)
    to_a, to_x = torch.autograd.grad(z.sum(), (a, x))
    torch.testing.assert_close(to_x, torch.full_like(x, 2.0))
    torch.testing.assert_close(to_a, 4 * x.sum())
    assert info["abs_lowest"].max() < 1e-8 and info["solution"].converged.all()


def test_options_of_one_call():
    x = batch()
    deq = ours.get_deq(core="indexing", f_tol=1e-12)
    f = lambda z: 0.5 * z + x  # noqa: E731
    zs, _ = deq(f, torch.zeros_like(x), f_max_iter=4, indexing=[2])
    ends = [2 * (1 - 0.5 ** (k + 1)) * x for k in (2, 4)]
    assert all(map(torch.allclose, zs, ends))
    _, info = deq.eval()(f, torch.zeros_like(x), solver_kwargs={"tol": 0.3}, sradius_mode=True)
    assert info["nstep"].max() < 8
    torch.testing.assert_close(info["sradius"], torch.full((5,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize(("core", "n_states"), [("indexing", 1), ("indexing", 2), ("sliced", 1)])
def test_the_solution_of_an_implicit_gradient_tells_of_the_solve(core, n_states):
    x = batch().requires_grad_()
    deq = ours.get_deq(core=core, n_states=n_states, ift=True, f_tol=1e-6, f_max_iter=60)
    zs, info = deq(lambda z: 0.5 * z + x, torch.zeros_like(x))
    assert info["nstep"].min() > 10 and info["solution"].evaluations > 10
    zs[-1].sum().backward()
    assert info["solution"].backward.vjps > 0


def test_priority_of_options_and_objects():
    namespace = argparse.Namespace(f_max_iter=7, learning_rate=1e-3)
    settings = ours.get_deq(namespace, f_max_iter=9, tau=0.5).settings
    assert (settings.forward.max_iter, settings.sampling.tau) == (7, 0.5)
    assert ours.get_deq({"ift": True, "mine": 1}).settings.implicit
    x = batch()
    deq = ours.get_deq(f_solver=ic.Newton(tol=1e-10), ift=True)
    (z,), _ = deq(lambda z: x - 3 * z, torch.zeros_like(x))
    torch.testing.assert_close(z, x / 4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"f_slver": "anderson"}, "did you mean 'f_solver'"),
        ({"lam": 1e-3}, "lam: is not carried over from TorchDEQ"),
        ({"core": "slice"}, "expected 'indexing' or 'sliced'"),
        ({"f_max_iter": 0}, "f_max_iter: expected a whole number of at least 1"),
        ({"grad": [0]}, "grad: expected numbers of at least 1"),
    ],
)
def test_options_that_are_refused(options, said):
    with pytest.raises(ic.ConfigError, match=said):
        ours.get_deq(**options)


@pytest.mark.parametrize(
    ("options", "call", "said"),
    [
        ({"f_solver": "andersen"}, {}, "there is no 'andersen'.*did you mean 'anderson'"),
        ({"f_stop_mode": "relative"}, {}, "expected 'abs' or 'rel'"),
        ({"n_states": 3, "grad": [1, 2]}, {}, "expected one number or 3"),
        ({"sup_gap": 3}, {}, "samples none"),
        ({}, {"solver_kwargs": {"return_final": True}}, "return_final: is not carried over"),
        ({}, {"solver_kwargs": {"tool": 1}}, "did you mean 'tol'"),
        ({}, {"iterations": 3}, "unknown option of a call"),
    ],
)
def test_calls_that_are_refused(options, call, said):
    with pytest.raises(ic.ConfigError, match=said):
        ours.get_deq(**options)(lambda z: 0.5 * z, torch.ones(2, 3), **call)


def test_what_is_not_carried_over_says_why():
    with pytest.raises(ic.InputError, match=r"info\['solution'\].backward"):
        ours.get_deq()(lambda z: 0.5 * z, torch.ones(2, 3), backward_writer=print)
    for name in ("register_deq", "anderson_solver"):
        with pytest.raises(ImportError, match="not carried over"):
            getattr(ours, name)
    with pytest.raises(AttributeError, match="no attribute 'get_dec'"):
        importlib.import_module(ours.__name__).get_dec  # noqa: B018
    _, info = ours.get_deq()(lambda z: 0.5 * z, torch.ones(2, 3))
    with pytest.raises(KeyError, match="'abs_trace' is kept"):
        info["rel_trace"]


def test_a_cell_that_mixes_samples_is_an_error_that_coupled_mends():
    x = batch().requires_grad_()
    mix = lambda z: 0.5 * z.mean(0, keepdim=True).expand_as(z) + x  # noqa: E731
    (z,), _ = ours.get_deq(ift=True, **TIGHT)(mix, torch.zeros(5, 6, dtype=torch.float64))
    with pytest.raises(ic.InputError, match="coupled=True"):
        z[0].sum().backward()
    deq = ours.get_deq(ift=True, coupled=True, **TIGHT)
    (z,), _ = deq(mix, torch.zeros(5, 6, dtype=torch.float64))
    torch.testing.assert_close(z, mix(z), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize("norm_type", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize(
    "options",
    [{}, {"clip": True, "clip_value": 0.5}, {"learn_scale": False, "target_norm": 0.9}],
    ids=["learned", "clipped", "fixed"],
)
@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 4), lambda: nn.ConvTranspose2d(2, 3, 3)])
def test_norms_are_torchdeqs(theirs, norm_type, options, make):
    torch.manual_seed(0)
    mine, other = (nn.Sequential(make()) for _ in range(2))
    other.load_state_dict(mine.state_dict())
    ours.apply_norm(mine, norm_type, **options)
    theirs.apply_norm(other, norm_type, **options)
    for _ in range(200):
        theirs.reset_norm(other)
    torch.testing.assert_close(mine[0].weight, other[0].weight, atol=1e-4, rtol=1e-4)
    weights = sum(p.numel() for p in mine.parameters())
    assert weights == sum(p.numel() for p in other.parameters())
    value = torch.as_tensor(mine[0].weight).detach().clone()
    ours.remove_norm(mine)
    assert torch.allclose(value, mine.state_dict()["0.weight"]) and "0.weight" in mine.state_dict()


def test_which_weights_are_normalised():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "n": nn.LayerNorm(2)})
    ours.apply_norm(model, filter_out="b")
    names = list(model.state_dict())
    assert "b.weight" in names and "n.weight" in names and "a.weight" not in names
    ours.apply_norm(model, prefix_filter_out=["a"], norm_type="none")
    assert "b.weight" in model.state_dict()
    with pytest.raises(ic.ConfigError, match="did you mean 'weight_norm'"):
        ours.apply_norm(model, "weight_norms")
    with pytest.raises(ic.ConfigError, match="did you mean 'clip'"):
        ours.apply_norm(model, clips=True)


@pytest.mark.parametrize(
    ("weight", "options"),
    [("exp", {}), ("exp", {"gamma": 0.5}), ("linear", {}), ("linear", {"bias": 0.3, "gamma": 0.2})],
)
def test_correction_weights_are_torchdeqs(theirs, weight, options):
    zs, y = [torch.tensor(float(k)) for k in (1, 2, 4, 7)], torch.tensor(0.5)
    crit = lambda z, y: (z - y).abs()  # noqa: E731
    found, values = our_loss.fp_correction(crit, (zs, y), weight, True, **options)
    expected, others = theirs.fp_correction(crit, (zs, y), weight, True, **options)
    torch.testing.assert_close(found, expected)
    assert values == pytest.approx(others)


def test_correction_by_hand():
    zs = [torch.tensor(1.0), torch.tensor(2.0)]
    assert our_loss.fp_correction(lambda z: z, (zs,), "const", c=0.5).item() == 1.5
    assert our_loss.fp_correction(lambda z: z, (zs,), lambda n, k: n + k).item() == 8
    with pytest.raises(ic.InputError, match=r"received lengths \[2, 3\]"):
        our_loss.fp_correction(lambda a, b: a, (zs, [*zs, zs[0]]))
    with pytest.raises(ic.ConfigError, match="did you mean 'linear'"):
        our_loss.fp_correction(lambda z: z, (zs,), "linar")


def test_the_size_and_the_radius_of_the_jacobian():
    torch.manual_seed(0)
    a = torch.diag(torch.tensor([0.9, 0.2, -0.5], dtype=torch.float64))
    z = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    f = z @ a
    assert our_loss.jac_reg(f, z, vecs=4000).item() == pytest.approx(1.1 / 3, rel=0.05)
    vector, radius = our_loss.power_method(f, z)
    torch.testing.assert_close(radius, torch.full_like(radius, 0.9), atol=1e-6, rtol=0)
    assert vector.shape == z.shape


def test_checkpointed_calls_have_the_same_gradient():
    cell, x = Cell(), batch().requires_grad_()
    found = torch.autograd.grad(ours.mem_gc(cell, (x, x)).sum(), [x, *cell.parameters()])
    expected = torch.autograd.grad(cell(x, x).sum(), [x, *cell.parameters()])
    assert all(map(torch.allclose, found, expected))


def test_dropout_has_one_mask_a_call():
    drop = ours.VariationalDropout2d(0.5)
    deq, x = ours.get_deq(f_tol=1e-6, grad=2), torch.ones(4, 8, 3, 3)
    (z,), info = deq(lambda z: drop(0.3 * z + x), torch.zeros_like(x))
    assert info["solution"].converged.all()
    assert ((z == 0).all((2, 3)) | (z != 0).all((2, 3))).all() and (z == 0).any()
    ours.reset_dropout(drop)
    ours.reset_deq(deq)


def test_the_command_line_is_torchdeqs(theirs):
    parsers = argparse.ArgumentParser(), argparse.ArgumentParser()
    ours.add_deq_args(parsers[0])
    theirs.add_deq_args(parsers[1])
    words = ["--f_tol", "1e-5", "--grad", "2", "3", "--ift", "--norm_clip"]
    assert parsers[0].parse_args([]) == parsers[1].parse_args([])
    assert parsers[0].parse_args(words) == parsers[1].parse_args(words)


def test_a_mixed_start():
    z = ours.mixed_init((100, 10))
    assert z.shape == (100, 10) and 0.4 < (z == 0).float().mean() < 0.6


def test_it_does_not_need_torchdeq():
    code = """
import sys
sys.modules["torchdeq"] = None
import torch
from implicitcore.compat.torchdeq import get_deq
from implicitcore.compat.torchdeq.norm import apply_norm
print(get_deq()(lambda z: 0.5 * z, torch.ones(2, 3))[0][-1].shape)
"""
    done = run_python("-c", code)
    assert done.stdout == "torch.Size([2, 3])\n", done.stderr
