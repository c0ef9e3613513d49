import pytest
import torch

import implicitcore as ic
from implicitcore_lab.experiment import check_settings
from implicitcore_lab.models import build_classifier
from implicitcore_lab.settings import Settings
from implicitcore_lab.tolerance import at_tolerance, tolerance_of

GMRES = {"name": "deq", "gradient": {"name": "implicit", "solver": {"name": "gmres"}}}
LAYERS = ("deq", "continuous_deq", "skip_deq", "skip_reg_deq", "neural_ode", "homoode")
CHECKPOINTED = {"name": "neural_ode", "gradient": {"name": "checkpointed"}}
ADJOINT = {"name": "neural_ode", "gradient": {"name": "adjoint", "solver": {"name": "dopri5"}}}


def build(layer, tolerance=None):
    return build_classifier(Settings(layer=layer, hidden=8, tolerance=tolerance), (1, 8, 8), 10)


def config(layer, tolerance=None):
    return build(layer, tolerance).layer.config


@pytest.mark.parametrize("layer", [*LAYERS, GMRES, CHECKPOINTED, ADJOINT], ids=str)
def test_every_solver_of_a_layer_has_the_tolerance_and_nothing_else_changes(layer):
    before, after = config(layer), config(layer, 3e-3)
    assert tolerance_of(before) != 3e-3
    assert tolerance_of(after) == 3e-3
    slot = "root_solver" if "root_solver" in before else "ode_solver"
    option = "tol" if slot == "root_solver" else "rtol"
    before[slot][option] = 3e-3
    if "solver" in before["gradient"]:
        before["gradient"]["solver"][option] = 3e-3
    assert after == before


def test_the_layer_solves_to_it():
    loose, tight = build("neural_ode", 1e-1).layer, build("neural_ode", 1e-6).layer
    assert isinstance(loose.solver, ic.Tsit5) and isinstance(tight.solver, ic.Tsit5)
    assert (loose.solver.rtol, tight.solver.rtol) == (1e-1, 1e-6)
    gradient = build(GMRES, 1e-2).layer.gradient
    assert isinstance(gradient, ic.Implicit) and isinstance(gradient.solver, ic.GMRES)
    assert gradient.solver.tol == 1e-2


def test_a_gradient_without_a_solver_of_its_own_follows_the_layer():
    layer = build("deq", 1e-2).layer
    gradient = layer.gradient
    assert isinstance(gradient, ic.Implicit) and gradient.solver is None
    assert gradient.backward_solver(layer.solver, torch.float32) == ic.GMRES(tol=1e-3)


def test_the_weights_do_not_depend_on_it():
    one, other = build("homoode").state_dict(), build("homoode", 1e-2).state_dict()
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)


def test_fixed_steps_have_none():
    layer = {"name": "neural_ode", "ode_solver": {"name": "rk4", "dt": 0.5}}
    assert config(layer, 1e-3) == config(layer)
    assert tolerance_of(config(layer)) is None


def test_a_part_without_options_is_left_alone():
    plain = {"name": "mine", "root_solver": "theirs", "gradient": "implicit"}
    assert at_tolerance(plain, 1e-3) == plain
    assert tolerance_of(plain) is None


def test_each_layer_is_checked_with_it():
    (settings,) = check_settings({"tolerance": "1e-3"}, ["deq"])
    assert settings.tolerance == 1e-3
