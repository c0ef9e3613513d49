"""Settings for every test in the repository: the core's, the plugins' and the docstrings'."""

import gc
import os
from collections.abc import Generator

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")  # no test opens a window

import torch  # noqa: E402

from implicitcore.system.repeated import forget_counts  # noqa: E402
from implicitcore.tensors import host  # noqa: E402

# The tensors of the tests are small: threads cost more than they bring, and fight with pytest's own
# processes.
torch.set_num_threads(1)
torch.manual_seed(0)  # of the devices that are not in use yet: they take it when they are


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is collected stays: no search for garbage in it, neither now nor while the tests run."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, or a process would run one alone at the end."""
    items.sort(
        key=lambda item: -max((sum(mark.args) for mark in item.iter_markers("slow")), default=0)
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that has the loops do what they do on an accelerator."""
    parser.addoption(
        "--accelerator",
        action="store_true",
        help="the loops do on the CPU what they do on an accelerator (make test-device)",
    )


@pytest.fixture(autouse=True)
def _accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """With ``--accelerator`` every test runs the branch of a device."""
    if request.config.getoption("--accelerator"):
        monkeypatch.setattr(host, "on_host", lambda tensor: False)


@pytest.fixture(autouse=True)
def _reproducible(monkeypatch: pytest.MonkeyPatch):
    """The same numbers in every order of the tests, and the same plugins in every shell.

    And the same warnings: each is given once for a function, which several tests may share.
    """
    # torch.manual_seed writes down the stack as well, for each kind of device that is not in use.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    forget_counts()
    for variable in ("IMPLICITCORE_DISABLE_PLUGINS", "IMPLICITCORE_STRICT_PLUGINS"):
        monkeypatch.delenv(variable, raising=False)
