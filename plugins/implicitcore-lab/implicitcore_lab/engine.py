"""The device, the precision and the processes of a training: Lightning Fabric."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from implicitcore import ConfigError, ImplicitCoreError
from implicitcore_lab.errors import TrainingError, first_line
from implicitcore_lab.settings import Settings

PRECISIONS = {"32": "32-true"}
WATCH_SECONDS = 1.0
LOST = 1
LOST_WORDS = ("gloo", "NCCL", "Connection", "recvValue", "Socket", "Broken pipe")
Result = TypeVar("Result")


class Engine:
    """What a training runs on: one process, or several that share each batch.

    Arguments:
        settings: device, devices, strategy and precision.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """

    def __init__(self, settings: Settings) -> None:
        for name in ("lightning_fabric", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        device = choose_device(settings)
        self.devices = external_world() or settings.devices
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on other plugins and on SLURM
            self.fabric = Fabric(
                accelerator=device.type,
                devices=int(os.environ.get("LOCAL_WORLD_SIZE", settings.devices)),
                num_nodes=self.devices // int(os.environ.get("LOCAL_WORLD_SIZE", self.devices)),
                strategy=_strategy(settings.strategy, self.devices),
                precision=PRECISIONS.get(settings.precision, settings.precision),  # type: ignore
            )

    def launch(self) -> None:
        """Start the other processes, which run the same command, and meet them."""
        if self.devices == 1:
            return
        parent = os.getppid()
        self.fabric.launch()
        if self.rank:
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self.fabric.device

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self.fabric.global_rank

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.fabric.world_size

    def module(self, module: nn.Module) -> nn.Module:
        """The module as all processes train it together."""
        return self.fabric.setup_module(module)

    def optimizers(self, optimizers: list[Optimizer]) -> list[Any]:
        """The optimisers of a module that :meth:`module` returned."""
        return [self.fabric.setup_optimizers(optimizer) for optimizer in optimizers]

    def backward(self, loss: Tensor) -> None:
        """The gradient of the loss, in the sum over all processes once they synchronise."""
        self.fabric.backward(loss)

    def unsynchronised(self, module: Any, enabled: bool) -> AbstractContextManager[Any]:
        """Leave the gradients on each process for now, where ``enabled``."""
        return self.fabric.no_backward_sync(module, enabled=enabled)

    def clip(self, module: Any, optimizer: Any, norm: float) -> None:
        """Scale the gradient so that its 2-norm is at most ``norm``."""
        self.fabric.clip_gradients(module, optimizer, max_norm=norm, error_if_nonfinite=False)

    def share(self, rows: Tensor) -> tuple[Tensor, int]:
        """This process's part of a batch, and how many samples of it count.

        Where there are fewer samples than processes a process gets one that counts for nothing, for
        all must take part in the step.
        """
        mine = rows[self.rank :: self.world]
        return (mine, len(mine)) if len(mine) else (rows[:1], 0)

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: float) -> float:
        """The largest over the processes."""
        if self.world == 1:
            return value
        found = torch.tensor(value, device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return found.item()

    def gather(self, value: Result) -> list[Result]:
        """What each process has, on all of them."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Do something on the first process alone, and give its result to all.

        Where it fails the others end without a word.
        """
        if self.world == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except ImplicitCoreError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None and self.rank == 0:
            raise outcome[1]
        if outcome[1] is not None:
            raise SystemExit(LOST)  # the first process tells
        return outcome[0]

    def on_main_first(self, work: Callable[[], Result]) -> Result:
        """Do something on every process, but first on the first one alone, which downloads."""
        mine: list[Result] = []
        self.on_main(lambda: mine.append(work()))
        return mine[0] if mine else work()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Say in one sentence that another process is gone.

        Raises:
            TrainingError: it is.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world > 1 and any(word in str(error) for word in LOST_WORDS):
                raise lost_process(error) from error
            raise

    def scaler_state(self) -> dict[str, Any]:
        """The state of the loss scale of 16-mixed; empty without one."""
        return self.fabric.strategy.precision.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Go on with a loss scale."""
        if state:
            self.fabric.strategy.precision.load_state_dict(state)

    def close(self) -> None:
        """Part from the other processes."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


def external_world() -> int:
    """How many processes ``torchrun`` has started; 0 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def choose_device(settings: Settings) -> torch.device:
    """The device that the settings mean.

    Raises:
        ConfigError: CUDA was asked for and there is none, or fewer of it than asked for.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available:
        raise ConfigError(["device: cuda was asked for, but torch finds no CUDA device here"])
    if not available or settings.device == "cpu":
        return torch.device("cpu")
    if settings.devices > torch.cuda.device_count():
        raise ConfigError(
            [f"devices: expected up to {torch.cuda.device_count()}, received {settings.devices}"]
        )
    return torch.device("cuda")


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process may have a part, whole and on the CPU."""
    found = tensor.detach()
    return (found.full_tensor() if isinstance(found, DTensor) else found).cpu()


def like(tensor: Tensor, model: Tensor) -> Tensor:
    """A whole tensor, placed and divided among the processes as another one is."""
    if isinstance(model, DTensor) and tensor.shape == model.shape:
        placed = tensor.to(model.to_local().device)
        return distribute_tensor(placed, model.device_mesh, model.placements)
    return tensor.to(model.device) if tensor.ndim else tensor


def lost_process(error: BaseException) -> TrainingError:
    """What to raise for an error of the communication between the processes."""
    return TrainingError(
        f"another process of this training has ended or cannot be reached ({first_line(error)}); "
        "its checkpoint is kept: go on with --resume"
    )


def _strategy(name: str, devices: int) -> Strategy | str:
    if devices == 1:
        return "auto"
    if name == "ddp":
        return DDPStrategy()
    return ModelParallelStrategy(_shard, data_parallel_size=devices, tensor_parallel_size=1)


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Divide the whole module among the processes.

    Not the cell on its own: a solve calls it a different number of times on each process, and each
    call would wait for the others.
    """
    fully_shard(module, mesh=mesh["data_parallel"])
    return module


def _end_with(parent: int) -> None:
    """End this process when the first one, its parent, has ended without a word."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    print("implicitcore train: the first process has ended, and so does this one", file=sys.stderr)
    os._exit(LOST)
