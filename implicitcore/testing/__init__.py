"""The contract of every kind of part, as checks to run on a part of your own.

With pytest:

.. code-block:: python

    from implicitcore.testing import parametrize_with_checks

    @parametrize_with_checks([MySolver(tol=1e-6)])
    def test_contract(part, check):
        check(part)

Without pytest: :func:`run_checks`, whose results ``implicitcore check KIND NAME`` prints.

The references that the checks compare with are public too: ``dense``, ``problems``,
``trajectories``, ``hard_systems``, ``hard_maps``, ``kernel_checks``, ``step_kernel_checks``,
``krylov_checks``, ``solve_checks`` and ``requirements``.
"""

from implicitcore.testing.check import Check as Check
from implicitcore.testing.check import contract as contract
from implicitcore.testing.expect import ContractError as ContractError
from implicitcore.testing.expect import NotApplicable as NotApplicable
from implicitcore.testing.factory import Maker as Maker
from implicitcore.testing.parametrize import parametrize_with_checks as parametrize_with_checks
from implicitcore.testing.run import CheckResult as CheckResult
from implicitcore.testing.run import checks_for as checks_for
from implicitcore.testing.run import run_checks as run_checks

__all__ = [
    "Check",
    "CheckResult",
    "ContractError",
    "Maker",
    "NotApplicable",
    "checks_for",
    "contract",
    "parametrize_with_checks",
    "run_checks",
]
