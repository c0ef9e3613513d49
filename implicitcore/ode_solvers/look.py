"""What the loop of an integration learns of a step: its one look at the device."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from implicitcore.ode_solvers.samples import Samples
from implicitcore.ode_solvers.step_chooser import Attempt, Choice
from implicitcore.ode_solvers.stops import Stops


class Look(NamedTuple):
    """What is known of a step on the host."""

    follows: Tensor  # [batch] bool, what takes its end over
    alike: bool  # all do
    arrived: bool  # a sample reached a stop
    refused: bool  # a sample did not accept it
    passed: Tensor | None = None  # [batch] bool, which pass output times; None where none does
    all_pass: bool = False

    @classmethod
    def at(cls, samples: Samples, stops: Stops, attempt: Attempt, choice: Choice) -> Look:
        """The one look at the device in a step where nothing happens."""
        accept = choice.accept
        # A sample at its last time may follow the others: its dt is zero.
        follows = accept | samples.done
        asked = [
            follows.all(),
            (accept & attempt.arrives).any(),
            (samples.active & ~accept).any(),
        ]
        if not stops.between:
            alike, arrived, refused = torch.stack(asked).tolist()
            return cls(follows, alike, arrived, refused)
        passed = accept & stops.later(attempt.end, samples.ahead.due)
        found = torch.stack([*asked, passed.any(), passed.all()])
        alike, arrived, refused, some_pass, all_pass = found.tolist()
        return cls(follows, alike, arrived, refused, passed if some_pass else None, all_pass)
