import pytest
import torch

from implicitcore_lab.memory import peak_bytes

CPU = torch.device("cpu")
BLOCK = 1000 * 4


def test_counts_what_lives_at_once():
    def work():
        a = torch.zeros(1000)
        b = a + 1
        del a
        for _ in range(10):
            b = b + 1

    assert peak_bytes(work, CPU) == 2 * BLOCK


def test_a_view_costs_nothing():
    def work():
        a = torch.zeros(1000)
        return a.view(10, 100)[2:5], a[3:]

    assert peak_bytes(work, CPU) == BLOCK


def test_what_was_there_before_costs_nothing():
    before = torch.zeros(100_000)
    assert peak_bytes(lambda: before[:1000].view(10, 100) + 1, CPU) == BLOCK


def test_what_autograd_keeps_counts():
    x = torch.zeros(1000, requires_grad=True)

    def kept():
        y = x
        for _ in range(5):
            y = y.exp()
        return y

    def dropped():
        with torch.no_grad():
            return kept()

    assert peak_bytes(kept, CPU) == 5 * BLOCK
    assert peak_bytes(dropped, CPU) == 2 * BLOCK


def test_the_same_number_every_time():
    layer = torch.nn.Linear(50, 50)
    x = torch.randn(20, 50)

    def work():
        layer.zero_grad()
        layer(x).tanh().sum().backward()

    assert len({peak_bytes(work, CPU) for _ in range(3)}) == 1


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr", "to_sparse_csc"])
def test_a_sparse_tensor_is_its_indices_and_values(layout):
    """A graph's cell multiplies by its sparse adjacency matrix, which has no storage of its own."""
    sparse, dense = getattr(torch.eye(100), layout)(), torch.ones(100, 10)
    product = peak_bytes(lambda: sparse @ dense, CPU)
    assert BLOCK <= product <= 2 * BLOCK  # some layouts are multiplied into a buffer
    made = peak_bytes(lambda: getattr(torch.eye(100), layout)(), CPU)
    assert made >= torch.eye(100).nbytes + 100 * 4 + 2 * 100 * 8
