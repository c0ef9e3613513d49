"""The reduced form of ``make faults-lab``: each fault, a few times."""

import pytest
from faults import lab


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return lab.Bench(tmp_path_factory.mktemp("faults"), ("deq",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "count"),
    [
        (lab.killed, 2),
        (lab.terminated, 1),
        (lab.disk_full, 1),
        (lab.bit_flip, 3),
        (lab.overwrite_killed, 1),
        (lab.overwrite_failed, 1),
    ],
)
def test_nothing_is_lost(bench, fault, count):
    try:
        assert [fault(bench, index) for index in range(count)] == [True] * count
    except PermissionError as error:
        pytest.skip(str(error))
