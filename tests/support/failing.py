"""Which checks of the contract kit a part fails."""

from implicitcore.testing import run_checks


def failed(part, **options):
    """The names, with the messages on show where a test fails."""
    found = {
        result.name: result.message
        for result in run_checks(part, **options)
        if result.status == "failed"
    }
    print(*found.items(), sep="\n")
    return set(found)
