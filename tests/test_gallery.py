"""The claim of every example of the gallery, in its reduced form."""

import runpy
import warnings

import pytest
import torch
from support.sites import ROOT

from implicitcore.testing.requirements import needs

EXAMPLES = ROOT / "docs" / "examples"
CLAIMS = {
    "plot_cnf_density": lambda v: (
        v["history"][-1] > v["baseline"] + 0.3 and abs(v["mass"] - 1) < 0.02
    ),
    "plot_continuous_skip_deq": lambda v: (
        min(v["accuracy"].values()) > 0.85
        and v["evaluations"]["skip_reg_deq"] < v["evaluations"]["continuous_deq"]
        and v["evaluations"]["skip_deq"] < v["evaluations"]["continuous_deq"]
    ),
    "plot_deblurring": lambda v: (
        v["quality"]["DEQ"] > v["quality"]["Tikhonov"] and bool(v["solution"].converged.all())
    ),
    "plot_digits_deq": lambda v: (
        v["accuracies"][-1] > max(0.88, v["accuracies"][0])
        and max(v["costs"][-14:]) <= max(v["costs"][:14]) + 5
    ),
    "plot_graph_deq": lambda v: v["right"] >= 30 and bool(v["solution"].converged.all()),
    "plot_homotopy_bridge": lambda v: (
        v["bridge"] < 1e-8 and v["losses"][-1] < 0.05 * v["losses"][0]
    ),
    "plot_language_model": lambda v: v["bits"] < v["alone"] - 0.8 and max(v["spent"]) <= 16,
    "plot_latent_ode": lambda v: v["error"] < 0.2 * v["spread"],
    "plot_monotone": lambda v: (
        all(rate <= made.rate for made, rate in (v["before"], v["after"]))
        and v["after"][0].unique
        and v["norm"] > 1
        and v["spread"] < 1e-3
    ),
    "plot_pendulum_events": lambda v: v["worst"] < 1e-8 and abs(v["reached"] - 2) < 1e-8,
    "plot_serving": lambda v: v["away"] < 1e-5 and v["same_steps"] and v["accuracy"] > 0.8,
    "plot_robertson": lambda v: (
        v["taken"] < 200 and v["mass"] < 1e-12 and v["gradient_error"] < 1e-4
    ),
}


def test_every_example_has_its_claim():
    assert {path.stem for path in EXAMPLES.glob("plot_*.py")} == set(CLAIMS)


def test_the_front_page_has_the_picture_of_its_script(tmp_path):
    """Newton, the flow and the homotopy arrive at the equilibrium; Picard circles."""
    needs("matplotlib")
    draw = runpy.run_path(str(ROOT / "docs" / "pictures" / "equilibrium.py"))["draw"]
    paths = draw(tmp_path / "picture.svg")
    away = {name: (path[-1] - paths["equilibrium"][0]).norm() for name, path in paths.items()}
    assert away.pop("Picard") > 0.1
    assert torch.tensor(list(away.values())).max() < 1e-3
    assert (tmp_path / "picture.svg").stat().st_size > 10_000
    assert (ROOT / "docs" / "_static" / "equilibrium.svg").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(name, monkeypatch):
    for package in ("matplotlib", "networkx", "sklearn"):
        needs(package)
    from matplotlib import pyplot

    monkeypatch.setenv("IMPLICITCORE_GALLERY", "small")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    drawn = [pyplot.figure(number) for number in pyplot.get_fignums()]
    pyplot.close("all")
    assert drawn, "an example has a picture"
    assert CLAIMS[name](values)
