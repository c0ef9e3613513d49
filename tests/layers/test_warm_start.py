"""A start keyed by sample: what it keeps, of which samples, and what it refuses."""

# Options that are wrong on purpose are among these.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

import copy
import math
import pickle

import pytest
import torch

import implicitcore as ic

SAMPLES, N = 9, 4
X = torch.randn(SAMPLES, N, generator=torch.Generator().manual_seed(3))


def pull(z, x):
    return torch.tanh(0.9 * z + x)


def two(z, x):
    a, b = z["a"], z["b"]
    return {
        "a": torch.tanh(0.5 * a + b.sum((1, 2)).unsqueeze(1) / 9),
        "b": b / 2 + x.view(-1, 2, 2),
    }


def layer_of(cell=pull, samples=SAMPLES, start=None, **options):
    options = {"solver": ic.Picard(tol=1e-5, max_steps=200)} | options
    return ic.ImplicitLayer(ic.FixedPoint(cell), start=ic.WarmStart(samples, start), **options)


def keys(*numbers, dtype=torch.int64):
    return torch.tensor(numbers, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("gradient", ["implicit", "phantom", "unrolled"])
def test_a_sample_begins_where_it_ended_last(dtype, gradient):
    layer = layer_of(gradient=gradient, start="identity")
    x, rows = X.to(dtype), keys(5, 0, 7)
    first = layer.solve(x[rows], keys=rows)
    assert torch.equal(first.start, x[rows])
    assert first.evaluations > 5
    mixed = keys(2, 7, 5, 0)
    second = layer.solve(x[mixed], keys=mixed)
    expected = torch.cat((x[2:3], first.z.detach()[[2, 0, 1]]))
    assert torch.equal(second.start, expected)
    assert second.steps[1:].tolist() == [1, 1, 1]
    assert second.steps[0] > 5
    assert torch.allclose(second.z[1:], first.z[[2, 0, 1]], atol=1e-3)
    assert not second.start.requires_grad


def test_a_step_of_training_moves_the_equilibrium_and_the_start_follows():
    weight = torch.full((), 0.9, requires_grad=True)
    layer, rows = layer_of(lambda z, x: torch.tanh(weight * z + x)), keys(1, 2)
    before = layer.solve(X[rows], keys=rows)
    before.z.square().sum().backward()
    assert weight.grad is not None
    with torch.no_grad():
        weight -= 0.01 * weight.grad
    after = layer.solve(X[rows], keys=rows)
    after.z.sum().backward()
    cold = ic.ImplicitLayer(layer.dynamics, solver=layer.solver).solve(X[rows])
    assert torch.allclose(after.z, cold.z, atol=1e-4)
    assert after.evaluations < cold.evaluations
    assert torch.equal(after.start, before.z)


def test_states_of_several_tensors_and_another_start():
    shape = {"a": (3,), "b": (2, 2)}
    layer = layer_of(two, start={"name": "zeros", "shape": shape}).double()
    rows, x = keys(8, 1, dtype=torch.int32), X.double()
    found = layer.solve(x[rows], keys=rows)
    again = layer.solve(x[[1, 0]], keys=keys(1, 0))
    assert torch.equal(again.start["a"][0], found.z["a"][1])
    assert torch.equal(again.start["b"][0], found.z["b"][1])
    assert not again.start["b"][1].any()
    assert {name: value.shape for name, value in layer.start.named_buffers()} == {
        "seen": (SAMPLES,),
        "kept_0": (SAMPLES, 3),
        "kept_1": (SAMPLES, 2, 2),
    }


def test_evaluation_reads_and_keeps_nothing():
    layer, rows = layer_of(), keys(3, 4)
    layer(X[rows], keys=rows)
    kept = copy.deepcopy(layer.state_dict())
    layer.eval()
    assert layer.solve(X[rows], keys=rows).steps.tolist() == [1, 1]
    assert layer.solve(X, keys=torch.arange(SAMPLES)).evaluations > 5
    assert not layer.solve(X[rows]).start.any()
    assert all(torch.equal(value, kept[name]) for name, value in layer.state_dict().items())


def test_a_sample_that_failed_is_forgotten_and_leaves_no_nan():
    layer, rows = layer_of(on_failure="ignore"), keys(0, 1, 2)
    layer(X[rows], keys=rows)
    bad = X[rows].clone()
    bad[1] = math.nan
    assert layer.solve(bad, keys=rows).converged.tolist() == [True, False, True]
    assert layer.start.seen.nonzero().flatten().tolist() == [0, 2]
    assert layer.start.get_buffer("kept_0").isfinite().all()
    again = layer.solve(X[rows], keys=rows)
    assert again.start[1].tolist() == [0.0] * N
    assert again.steps[1] > again.steps[0]
    assert again.converged.all()


def test_it_is_saved_and_loaded_copied_and_pickled():
    layer, rows = layer_of(start=ic.LearnedInitialGuess(N)), keys(6, 2)
    layer(X[rows], keys=rows)
    others = [layer_of(start=ic.LearnedInitialGuess(N)) for _ in range(2)]
    others[0].load_state_dict(layer.state_dict())
    others[1](X[:1].double(), keys=keys(0))
    others[1].load_state_dict(layer.state_dict())
    start = pickle.loads(pickle.dumps(layer.start))
    for twin in [*(other.start for other in others), copy.deepcopy(layer.start), start]:
        for name, value in layer.start.state_dict().items():
            assert torch.equal(twin.state_dict()[name], value)
        assert torch.equal(twin.keyed(X[rows], rows), layer.start.keyed(X[rows], rows))
    others[0].load_state_dict(layer_of(start=ic.LearnedInitialGuess(N)).state_dict())
    assert "kept_0" not in dict(others[0].start.named_buffers())
    assert not others[0].start.seen.any()


def test_it_is_an_option_of_a_configuration():
    spec = {"name": "warm", "samples": 5, "start": {"name": "learned", "channels": 2}}
    start = ic.create("start", spec)
    assert isinstance(start, ic.WarmStart)
    assert (start.samples, start.detached, start.evaluations) == (5, True, 0)
    assert ic.describe(start)["start"]["channels"] == 2
    counted = ic.WarmStart(3, ic.OneStep(pull))
    layer = ic.ImplicitLayer(ic.FixedPoint(pull), solver=ic.Picard(tol=1e-5), start=counted)
    rows = keys(0, 1)
    first = layer.solve(X[rows], keys=rows)
    assert torch.equal(first.start, pull(torch.zeros(2, N), X[rows]))
    with torch.no_grad():  # one evaluation is the wrapped start's
        assert layer.solve(X[rows], keys=rows).evaluations == 2


def test_carrying_on_from_the_last_call_is_z0():
    layer = ic.ImplicitLayer(ic.FixedPoint(pull), solver=ic.Picard(tol=1e-5, max_steps=200))
    first = layer.solve(X)
    assert set(layer.solve(X, first.z.detach()).steps.tolist()) == {1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "a warm start needs keys in training mode: layer.solve"),
        ([0, 1], r"keys: expected a tensor of whole numbers, received \[0, 1\]"),
        (torch.tensor([0.0, 1.0]), "keys: expected a tensor of whole numbers, received"),
        (torch.tensor([True, False]), r"one whole number for each of 2 samples, received torch.b"),
        (keys(0, 1, 2), r"one whole number for each of 2 samples, received torch.int64 \[3\]"),
        (keys(0, SAMPLES), "keys: expected 0 to 8, received 0 to 9"),
        (keys(-1, 3), "keys: expected 0 to 8, received -1 to 3"),
        (keys(4, 4), "keys: a sample is twice in the batch"),
    ],
)
def test_keys_that_do_not_fit_are_one_sentence(given, message):
    with pytest.raises(ic.InputError, match=message):
        layer_of()(X[:2], keys=given)


def test_who_takes_no_keys_says_so():
    layer = ic.ImplicitLayer(ic.FixedPoint(pull), solver="picard")
    with pytest.raises(ic.InputError, match="keys: the start Zeros takes none; .* WarmStart"):
        layer(X, keys=torch.arange(SAMPLES))
    field = ic.VectorField(lambda t, z, x: x - z)
    flow = ic.ImplicitLayer(field, solver="tsit5", start=ic.WarmStart(SAMPLES))
    with pytest.raises(ic.InputError, match="begins at an equilibrium; this layer integrates"):
        flow(X, keys=torch.arange(SAMPLES))


def test_samples_of_another_shape_are_one_sentence():
    layer = layer_of()
    layer(X[:2], keys=keys(0, 1))
    with pytest.raises(ic.InputError, match=r"have the shapes \[\(4,\)\], these samples have \[\("):
        layer(torch.ones(2, 5), keys=keys(0, 1))
