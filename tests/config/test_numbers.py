"""What YAML makes of numbers: 1e-5 is a text to it, ``yes`` a truth value and ``.inf`` a number."""

import pytest
import torch

import implicitcore as ic

REAL = [
    ("deq", "root_solver", "anderson", "tol"),
    ("neural_ode", "ode_solver", "tsit5", "rtol"),
    ("neural_ode", "ode_solver", "rk4", "dt"),
]
COUNT = [
    ("deq", "root_solver", "anderson", "max_steps"),
    ("deq", "root_solver", "broyden", "memory"),
    ("neural_ode", "ode_solver", "tsit5", "max_steps"),
]
NO_REAL = ["true", "yes", ".nan", ".inf", "-.inf", "1e999", "'0x1p-3'", "'nan'", "[1]", "1_0.5.2"]
NO_COUNT = ["true", "yes", "3.5", "1e2", ".inf", "'0x10'", "0", "-3", "''"]


def build(tmp_path, about, value: str) -> ic.ImplicitLayer:
    layer, slot, part, option = about
    file = tmp_path / "layer.yaml"
    file.write_text(f"name: {layer}\n{slot}: {{name: {part}, {option}: {value}}}\n")
    return ic.build(ic.load_config(file), torch.nn.Identity())


@pytest.mark.parametrize("about", REAL, ids=str)
@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "0.00001", "'1e-5'"])
def test_a_real_number_in_every_notation(tmp_path, about, text):
    assert getattr(build(tmp_path, about, text).solver, about[-1]) == 1e-5


@pytest.mark.parametrize("about", REAL, ids=str)
@pytest.mark.parametrize("text", NO_REAL)
def test_what_is_no_real_number_is_refused_where_it_stands(tmp_path, about, text):
    with pytest.raises(ic.ConfigError, match=rf"{about[1]}\.{about[-1]}"):
        build(tmp_path, about, text)


@pytest.mark.parametrize("about", COUNT, ids=str)
def test_a_count(tmp_path, about):
    assert getattr(build(tmp_path, about, "30").solver, about[-1]) == 30


@pytest.mark.parametrize("about", COUNT, ids=str)
@pytest.mark.parametrize("text", NO_COUNT)
def test_what_is_no_count_is_refused_where_it_stands(tmp_path, about, text):
    with pytest.raises(ic.ConfigError, match=rf"{about[1]}\.{about[-1]}"):
        build(tmp_path, about, text)
