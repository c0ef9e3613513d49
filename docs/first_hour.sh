#!/usr/bin/env bash
# A newcomer's first hour, in an environment that holds nothing else: every distribution is built
# and installed from its wheel, then each block of the README, of Start, of the tutorial, of Tuning
# and of It does not converge is run as it stands there. In a checkout, with a network:
#
#     bash docs/first_hour.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
"${PYTHON:-python3}" -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt build hatchling twine

"$tools/bin/python" .ci/wheels.py build
"$tools/bin/python" .ci/wheels.py try \
    docs/start.md docs/tutorial.md docs/tuning.md docs/not_converging.md
