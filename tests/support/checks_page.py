"""The list of checks on docs/testing.md.

Renew it with ``PYTHONPATH=tests python -m support.checks_page``.
"""

from pathlib import Path

from implicitcore.options.kinds import NAMED_KINDS
from implicitcore.testing import checks_for

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
BEGIN, END = "<!-- checks: begin -->\n", "<!-- checks: end -->\n"


def listing() -> str:
    """A heading for each kind, and a line for each of its checks."""
    sections = []
    for kind in NAMED_KINDS:
        lines = [f"- `{check.name}`: {check.summary}\n" for check in checks_for(kind)]
        sections.append("".join([f"### {kind}\n\n", *lines]))
    return "\n".join(sections)


def with_listing(page: str) -> str:
    """The page with the list as it is now."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n{listing()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(with_listing(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
