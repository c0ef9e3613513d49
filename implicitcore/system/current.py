"""Which solve context is current: of the solve that runs, or of a block around solves.

Nothing of it is kept on a module: threads, tasks and generators may share modules.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from implicitcore.system.cached_weights import Weights
    from implicitcore.system.scope import SolveContext


class Running(threading.local):
    """The solve that this thread is in.

    From its begin to its end a solve gives way to no other task of its thread, so that a variable
    of the thread is enough; and ``torch.compile`` can read one, unlike a context variable.
    """

    context: SolveContext | None = None
    weights: Weights | None = None

    def switch(self, context: SolveContext | None) -> None:
        """Make this the context of the solve; None outside any."""
        self.context = context
        self.weights = None if context is None else context.weights


running = Running()


class Block:
    """A ``with`` block around solves, in which f stays one function.

    It may give way: to another task, which has context variables of its own, or to what drives a
    generator, which has not. A block in a generator is therefore active while the generator runs.
    """

    def __init__(self, context: SolveContext) -> None:
        self.context: SolveContext | None = context
        self.frame = _generator_frame()
        self.outer = _block.get()
        _block.set(self)

    @property
    def active(self) -> bool:
        """Open, and not in a generator that is paused: the frame of one has no caller."""
        return self.context is not None and (self.frame is None or self.frame.f_back is not None)

    def close(self) -> None:
        """End the block, in whatever order and task blocks end."""
        self.context = self.frame = None
        block = _block.get()
        while block is not None and block.context is None:
            block = block.outer
        _block.set(block)


_block: ContextVar[Block | None] = ContextVar("implicitcore_block", default=None)


def current() -> SolveContext | None:
    """The context of the solve that this thread is in, or of the block around it, if any."""
    if running.context is not None:
        return running.context
    block = _block.get()
    while block is not None and not block.active:
        block = block.outer
    return None if block is None else block.context


def _generator_frame() -> FrameType | None:
    """The frame of the generator whose ``with`` statement opens the block; None for no generator.

    A generator that makes a context manager is paused while its block runs: what counts is the
    statement that entered it.
    """
    frame = _statement(inspect.currentframe())
    while frame is not None and frame.f_code.co_flags & _GENERATOR:
        if not _in_contextlib(frame.f_back):
            return frame
        frame = _statement(frame.f_back)
    return None


_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def _statement(frame: FrameType | None) -> FrameType | None:
    """The first frame, outwards, that is neither of contextlib nor of this package."""
    while frame is not None and (
        _in_contextlib(frame) or frame.f_globals.get("__package__") == __package__
    ):
        frame = frame.f_back
    return frame


def _in_contextlib(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename == contextlib.__file__
