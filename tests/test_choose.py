"""The figures of docs/how_to_choose.md are those that its program measures."""

import re

import pytest
from benchmarks import choose

pytestmark = pytest.mark.slow(18)
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")


def numbers(text: str) -> list[float]:
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


@pytest.fixture(scope="module")
def measured() -> list[choose.Row]:
    return choose.rows()


def test_the_page_has_what_is_measured(measured):
    """To a tenth and a few evaluations, an error to a factor of 3: BLAS rounds differently."""
    lines = choose.page_table().splitlines()[2:]
    assert len(lines) == len(measured)
    for line, row in zip(lines, measured, strict=True):
        shown = [cell.strip() for cell in line.strip("|").split(" | ")]
        assert shown[0::2][:1] + shown[1::2] == [row.case, f"`{row.take}`", f"`{row.other}`"]
        for page, now in ((shown[2], row.taken), (shown[4], row.refused)):
            assert NUMBER.sub("0", page) == NUMBER.sub("0", now)
            for was, found in zip(numbers(page), numbers(now), strict=True):
                if was < 0.5:
                    assert was / 3 <= found <= 3 * was, (row, page)
                else:
                    assert found == pytest.approx(was, rel=0.1, abs=3), (row, page)


def test_what_the_page_recommends_is_better(measured):
    """Fewer evaluations where both arrive; samples that arrive, else."""
    for row in measured[:6]:
        assert numbers(row.taken)[0] < numbers(row.refused)[0]
        assert "samples" not in row.taken
