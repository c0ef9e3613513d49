"""What a user sees while a layer trains.

A progress bar on a terminal, one line per epoch elsewhere.
"""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from implicitcore_lab.records import Epoch, Step

PLAIN_WIDTH = 120
SMOOTHING = 0.1


def make_console(*, quiet: bool = False) -> Console:
    """The console of the commands.

    As wide as the terminal, and wide enough for the table where there is none; silent where
    another process speaks.
    """
    if quiet:
        return Console(quiet=True)
    console = Console(highlight=False)
    return (
        console
        if console.is_terminal
        else Console(highlight=False, width=PLAIN_WIDTH, no_color=True)
    )


class Display:
    """Progress of one training run, as a context manager.

    Arguments:
        console: where to write.
        title: what is training.
        epochs: how many epochs there will be.
        steps: how many training steps there will be.
    """

    def __init__(self, console: Console, title: str, *, epochs: int, steps: int) -> None:
        self._console = console
        self._title = title
        self._epochs = epochs
        self._loss = self._accuracy = self._evaluations = None
        self._bar = Progress(
            TextColumn("{task.description:14}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]}  accuracy {task.fields[accuracy]}  evaluations "
                "{task.fields[evaluations]}"
            ),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=steps, loss="-", accuracy="-", evaluations="-")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def skip(self, steps: int) -> None:
        """Count steps that an earlier run has taken."""
        self._bar.update(self._task, advance=steps)

    def step(self, step: Step) -> None:
        """Move the bar; its numbers are running means."""
        self._loss = _smooth(self._loss, step.loss)
        self._accuracy = _smooth(self._accuracy, step.correct / step.samples)
        self._evaluations = _smooth(self._evaluations, step.evaluations)
        self._bar.update(
            self._task,
            advance=1,
            loss=f"{self._loss:.3f}",
            accuracy=f"{self._accuracy:.1%}",
            evaluations=f"{self._evaluations:.1f}",
        )

    def epoch(self, epoch: Epoch) -> None:
        """Write one line, where there is no bar."""
        if not self._console.is_terminal:
            self._console.print(
                f"{self._title}  epoch {epoch.epoch}/{self._epochs}  loss {epoch.loss:.3f} "
                f" accuracy {epoch.train_accuracy:.1%}"
                f"  test {epoch.test_accuracy:.1%}  evaluations {epoch.evaluations:.1f}  "
                f"{epoch.seconds:.1f} s"
            )


def _smooth(mean: float | None, value: float) -> float:
    return value if mean is None else mean + SMOOTHING * (value - mean)
