"""What the tests of the commands share."""

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from support.sites import Site

from implicitcore.cli import cli
from implicitcore.registry.registry import REGISTRY


@pytest.fixture
def run(site: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command in this process, with the distributions of ``site``: for commands that need
    torch, whose import takes seconds."""

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(REGISTRY, "_plugins", None)  # the site may have changed
        result = CliRunner().invoke(cli, arguments, prog_name="implicitcore")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
