"""CUDA graphs: work that is recorded once, and launched again as a whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch

Work = Callable[[], None]


class Capture(Protocol):
    """Records work that reads and writes the same memory whenever it is launched again."""

    def warm_up(self, work: Work) -> None:
        """Do the work once, as it will be recorded: what torch makes once is made then."""
        ...

    def record(self, work: Work) -> Work:
        """Record the work, which is not done; what does it, without any of its Python.

        Raises:
            Exception: of the work, or of the device where the work cannot be recorded.
        """
        ...

    def begin(self) -> None:
        """Wait, on the device, until those who used the memory last have done with it."""
        ...

    def end(self) -> None:
        """The memory is free for others once the device has done what was queued."""
        ...


class CudaCapture:
    """CUDA graphs of one device, with one pool of memory for all that they compute on the way.

    The graphs of a capture may not run at the same time.

    Arguments:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.used: torch.cuda.Event | None = None

    def warm_up(self, work: Work) -> None:
        """See :meth:`Capture.warm_up`: on the stream that records, whose handles are its own."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Work) -> Work:
        """See :meth:`Capture.record`; other threads may use the device meanwhile."""
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        )
        with torch.cuda.device(self.device), recording:
            work()
        return graph.replay

    def begin(self) -> None:
        """See :meth:`Capture.begin`."""
        if self.used is not None:
            torch.cuda.current_stream(self.device).wait_event(self.used)

    def end(self) -> None:
        """See :meth:`Capture.end`."""
        with torch.cuda.device(self.device):
            self.used = torch.cuda.Event()
            self.used.record()


def capture_on(device: torch.device) -> Capture | None:
    """What records on a device; None where nothing can.

    Modules call this function through its module, so that a test can put another in its place.
    """
    return CudaCapture(device) if device.type == "cuda" else None
