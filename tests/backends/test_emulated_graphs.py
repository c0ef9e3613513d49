"""The emulation of CUDA graphs does what a device does, and refuses what it refuses."""

from __future__ import annotations

import pytest
import torch

from implicitcore.backends.capture import capture_on
from implicitcore.testing.emulated_graphs import emulated, launch


@pytest.fixture
def recorder(monkeypatch):
    recorder = emulated(monkeypatch)(torch.device("cpu"))
    recorder.begin()
    return recorder


def test_nothing_is_done_until_the_replay_and_then_in_the_same_memory(recorder):
    x, out, calls, kept = torch.ones(3), torch.zeros(3), [], []

    def work():
        calls.append(1)
        kept.append(torch.exp(x).view(3, 1) + 1)
        out.add_(kept[0].squeeze(1))
        torch.mul(x, 2, out=x)

    replay = recorder.record(work)
    assert (out.tolist(), x.tolist()) == ([0.0] * 3, [1.0] * 3)
    assert bool(kept[0].isnan().all())
    address = kept[0].data_ptr()
    replay()
    replay()
    assert torch.allclose(out, torch.tensor([1.0, 2.0]).exp().sum() + 2)
    assert torch.allclose(kept[0], torch.tensor(2.0).exp() + 1)
    assert kept[0].data_ptr() == address and calls == [1] and x.tolist() == [4.0] * 3


def test_a_kernel_is_recorded_in_its_place(recorder):
    x, seen = torch.zeros(()), []

    def work():
        x.add_(1)
        launch(lambda: seen.append(float(x)))
        x.add_(1)

    replay = recorder.record(work)
    assert seen == []
    replay()
    replay()
    assert seen == [1.0, 3.0]
    launch(lambda: seen.append(0.0))
    assert seen[-1] == 0.0


def test_random_numbers_are_drawn_in_each_replay(recorder):
    found = []
    replay = recorder.record(lambda: found.append(torch.rand(4)))
    drawn = [(replay(), found[0].clone())[1] for _ in range(2)]
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: torch.unique(x),
    ],
)
def test_the_host_reads_nothing(recorder, read):
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        recorder.record(lambda: read(torch.ones(3)))
    assert recorder.records == 0
    read(torch.ones(3))


def test_an_index_that_is_no_mask_is_recorded(recorder):
    x, places, found = torch.arange(4.0), torch.tensor([3, 1]), []
    replay = recorder.record(lambda: found.append(x[places]))
    replay()
    assert found[0].tolist() == [3.0, 1.0]


def test_only_cuda_has_graphs():
    assert capture_on(torch.device("cpu")) is None
