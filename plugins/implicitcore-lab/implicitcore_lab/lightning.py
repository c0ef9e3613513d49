"""A Lightning ``Callback`` that logs what the implicit layers of a model did.

``pip install pytorch-lightning``; the lab itself needs Lightning Fabric alone.
"""

from __future__ import annotations

from typing import Any

import pytorch_lightning as lightning

from implicitcore import ImplicitLayer, ObserverHandle, SolveResult, observe
from implicitcore_lab.measures import solve_figures


class SolveLogger(lightning.Callback):
    """Logs the figures of the last solve of each implicit layer, at each step that is logged.

    ``Trainer(callbacks=[SolveLogger()])``. For each layer, by its path in the module:
    ``PATH/evaluations``, ``PATH/unconverged``, ``PATH/start_distance`` and the others of
    :func:`~implicitcore_lab.measures.solve_figures`, with ``PATH/backward`` once the backward pass
    has run. Reading them waits for the device, so it is done every ``log_every_n_steps`` of the
    trainer.
    """

    def __init__(self) -> None:
        self._last: dict[ImplicitLayer, SolveResult] = {}
        self._handle: ObserverHandle | None = None

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Begin to observe."""
        self._handle = observe(self._keep)

    def on_train_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        """Observe no more."""
        self._close()

    def on_exception(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        """Observe no more."""
        self._close()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log what each layer's last solve did, where the trainer logs this step."""
        if trainer.global_step % trainer.log_every_n_steps:  # pyright: ignore[reportAttributeAccessIssue]
            return
        for name, module in pl_module.named_modules():
            if isinstance(module, ImplicitLayer) and module in self._last:
                figures = solve_figures(self._last[module])
                pl_module.log_dict({f"{name}/{key}": value for key, value in figures.items()})

    def _keep(self, layer: ImplicitLayer, solution: SolveResult) -> None:
        if layer.training:
            self._last[layer] = solution

    def _close(self) -> None:
        if self._handle:
            self._handle.remove()
        self._last.clear()
