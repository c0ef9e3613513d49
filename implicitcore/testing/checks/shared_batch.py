"""What every kind of part promises for a batch, and for calls that follow each other."""

from __future__ import annotations

from typing import Any

from torch.utils import _pytree as pytree

from implicitcore.options.kinds import CLASS_KINDS, PIECE_KINDS
from implicitcore.testing.calls import calls
from implicitcore.testing.check import contract
from implicitcore.testing.expect import expect, expect_close, expect_equal
from implicitcore.testing.tensors import copied, rows, with_nan

BATCH_KINDS = (*CLASS_KINDS, *PIECE_KINDS)
CAN_MASK_NAN = tuple(kind for kind in BATCH_KINDS if kind != "layer")  # a layer raises


@contract(*BATCH_KINDS)
def per_sample(subject: Any) -> None:
    """A batch gives what its samples give alone."""
    for call in calls(subject):
        together = call.run(copied(call.inputs))
        for i in range(call.batch):
            alone = call.run(rows(call.inputs, [i]))
            for name, value in together.items():
                did = f"{call.name}, compared {name} of sample {i} of {call.batch} with that alone"
                expect_close(value[i : i + 1], alone[name], did, call.alone)


@contract(*CAN_MASK_NAN)
def nan_isolation(subject: Any) -> None:
    """A NaN in one sample leaves the others as they are."""
    for call in calls(subject):
        assert call.beside_nan is not None
        clean, found = call.run(copied(call.inputs)), call.run(with_nan(call.inputs, 1))
        others = [i for i in range(call.batch) if i != 1]
        for name, value in found.items():
            did = f"{call.name} with a NaN in sample 1, compared {name} of the others"
            expect_close(value[others], clean[name][others], did, call.beside_nan)


@contract(*BATCH_KINDS)
def empty_batch(subject: Any) -> None:
    """No samples are no error, and results of no samples."""
    whole = {call.name: call.run(copied(call.inputs)) for call in calls(subject)}
    for call in calls(subject, 0):
        for name, value in call.run(call.inputs).items():
            wanted = [0, *whole[call.name][name].shape[1:]]
            did = f"{call.name} with no samples, looked at {name}"
            expect(list(value.shape) == wanted, did, f"shape {list(value.shape)}", wanted)


@contract(*BATCH_KINDS)
def stateless(subject: Any) -> None:
    """The same call gives the same results, whatever was called in between."""
    for call in calls(subject):
        batch = call.batch
        first = call.run(copied(call.inputs))
        # The last one has the batch's size, as a state that is kept for its like would need.
        for between in ([*range(batch // 2)], [*reversed(range(batch))]):
            call.run(rows(call.inputs, between))
        for name, value in call.run(copied(call.inputs)).items():
            expect_equal(value, first[name], f"{call.name} again, compared {name}")


@contract(*BATCH_KINDS)
def no_input_mutation(subject: Any) -> None:
    """No argument is changed."""
    for call in calls(subject):
        arguments = (call.inputs, call.shared)
        before = copied(arguments)
        call.run(call.inputs)
        for found, expected in zip(
            pytree.tree_leaves(arguments), pytree.tree_leaves(before), strict=True
        ):
            expect_equal(found, expected, f"{call.name}, looked at its arguments")
