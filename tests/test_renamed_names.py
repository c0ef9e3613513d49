"""Names that were public once still resolve, with a warning that gives the new one."""

import importlib
import warnings
from typing import Any

import pytest
from support.sites import run_python

import implicitcore
from implicitcore.ode_solvers import stepwise
from implicitcore.registry.registry import REGISTRY

ic: Any = implicitcore  # whose stub has none of these names


@pytest.mark.parametrize("name", sorted(ic._OLD))
def test_an_old_name_resolves_and_warns_of_the_new_one(name: str):
    module, attribute = ic._OLD[name].split(":")
    with pytest.warns(
        DeprecationWarning, match=rf"implicitcore\.{name} is now {module}.{attribute}$"
    ):
        found = getattr(ic, name)
    assert found is getattr(importlib.import_module(module), attribute)
    assert name not in ic.__all__
    assert name not in dir(ic)


def test_an_old_name_warns_at_each_use_and_names_the_place_of_use():
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _ = ic.one_function
        assert [entry.filename for entry in caught] == [__file__]


def test_the_registry_and_the_steps_are_found_on_the_faces_of_their_packages():
    from implicitcore import registry
    from implicitcore.ode_solvers import base

    assert registry.REGISTRY is REGISTRY
    assert base.EqualSteps is stepwise.EqualSteps
    assert base.StepwiseODESolver is stepwise.StepwiseODESolver
    with pytest.raises(AttributeError, match="has no attribute 'EqualStep'"):
        _ = base.EqualStep


def test_the_old_names_keep_the_import_light():
    done = run_python("-c", "import implicitcore, sys; assert 'torch' not in sys.modules, 'torch'")
    assert done.returncode == 0, done.stderr
