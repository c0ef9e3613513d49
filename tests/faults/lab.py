"""``make faults-lab``: end trainings of the lab in every way, and count what is lost.

Each training runs in a process of its own, forked from one that has imported everything. The
numbers are counts of runs that came out right; the exit status is 1 where one did not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SETTINGS = ["--hidden", "8", "--epochs", "4", "--batch-size", "256", "--device", "cpu"]
SETTINGS += ["--checkpoint-minutes", "0.001", "--ema", "0.99", "--validation", "0.1"]
LAYERS = ("deq", "homoode", "skip_deq")
COMPARED = ("config.json", "weights.safetensors")
TRIES = 20
FILL_BLOCK = 1024
REPLACED_BY = ("--seed", "7")

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["implicitcore.cli", "implicitcore_lab.jobs", "sklearn.datasets"])


@dataclass(frozen=True)
class Around:
    """What a command runs in.

    Attributes:
        log: where its output goes.
        file_size: no file can be larger; 0 for any size.
        environment: variables, above those that there are.
        counts: where the evaluations of its solves are written, as JSON.
    """

    log: Path
    file_size: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    counts: Path | None = None


def command(words: list[str], around: Around) -> None:
    """Run the command line, in a process that was forked for it."""
    if around.file_size:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (around.file_size, around.file_size))
    os.environ.update(around.environment)
    stream = os.open(around.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    import torch

    import implicitcore as ic
    from implicitcore.cli import cli

    torch.set_num_threads(1)
    found: list[int] = []
    with ic.observe(lambda solution: found.append(solution.evaluations)):
        try:
            cli(words, prog_name="implicitcore")
        finally:
            if around.counts:
                around.counts.write_text(json.dumps(found))


class Command:
    """A command that runs; ``status`` waits for its end."""

    def __init__(self, *words: object, around: Around) -> None:
        self.around = around
        self.begin = time.monotonic()
        self.process = context.Process(target=command, args=(list(map(str, words)), around))
        self.process.start()

    def send_after(self, number: int, seconds: float, *, wait: bool = True) -> bool:
        """Send a signal at that time of its life, and await its end; whether it was still alive."""
        self.process.join(max(self.begin + seconds - time.monotonic(), 0))
        alive = self.process.is_alive()
        if alive and self.process.pid:
            os.kill(self.process.pid, number)
        if wait:
            self.process.join()
        return alive

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal."""
        self.process.join()
        return self.process.exitcode

    @property
    def output(self) -> str:
        """What it has written."""
        return self.around.log.read_text()


class Bench:
    """A folder with a whole run of each layer, which the broken ones must equal."""

    def __init__(self, folder: Path, layers: tuple[str, ...] = LAYERS, seed: int = 0) -> None:
        self.folder, self.layers = folder, layers
        self.random = random.Random(seed)
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, str]] = {}
        for layer in (layers[0], *layers):  # the first time starts the process that is forked
            run = self.train(layer, folder / f"whole-{layer}", "--overwrite")
            if run.status:
                raise RuntimeError(run.output)
            self.seconds[layer] = time.monotonic() - run.begin
            self.expected[layer] = digests(folder / f"whole-{layer}")

    def train(self, layer: str, out: Path, *more: object, file_size: int = 0) -> Command:
        """Begin a training; with a ``file_size`` no file can be larger."""
        words = ["train", "--layer", layer, *SETTINGS, "--out", out, *more]
        return Command(*words, around=Around(self.folder / "log", file_size))

    def ended(self, number: int, out: Path, index: int) -> tuple[str, Command]:
        """A training that a signal has ended at a random moment, 30 to 95 % of its time."""
        layer = self.layers[index % len(self.layers)]
        while True:
            for left in (out, out.with_name(out.name + ".partial")):
                shutil.rmtree(left, ignore_errors=True)
            run = self.train(layer, out)
            moment = self.random.uniform(0.3, 0.95) * self.seconds[layer]
            if run.send_after(number, moment) and not (out / "result.json").exists():
                return layer, run

    def copy(self, index: int) -> tuple[str, Path]:
        """A copy of a whole run."""
        layer = self.layers[index % len(self.layers)]
        out = self.folder / f"copy-{layer}"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(self.folder / f"whole-{layer}", out)
        return layer, out

    def replacement(self, layer: str) -> dict[str, str]:
        """What the files of a whole run are that --overwrite writes in the place of another."""
        out = self.folder / f"replacement-{layer}"
        if not out.exists() and self.train(layer, out, *REPLACED_BY).status:
            raise RuntimeError((self.folder / "log").read_text())
        return digests(out)

    def resumes(self, layer: str, out: Path) -> bool:
        """Whether a training goes on and ends as if nothing had happened."""
        run = self.train(layer, out, "--resume")
        return run.status == 0 and digests(out) == self.expected[layer]


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of the files that must be equal."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in COMPARED
        if (folder / name).exists()
    }


def killed(bench: Bench, index: int) -> bool:
    """``kill -9``, then --resume: the weights are bit-equal."""
    out = bench.folder / f"killed-{index}"
    layer, _ = bench.ended(signal.SIGKILL, out, index)
    return bench.resumes(layer, out)


def terminated(bench: Bench, index: int) -> bool:
    """SIGTERM ends with 143, one sentence and a checkpoint; then --resume, as above."""
    out = bench.folder / f"terminated-{index}"
    layer, run = bench.ended(signal.SIGTERM, out, index)
    told = run.status == 128 + signal.SIGTERM and "go on with --resume" in run.output
    early = run.status == -signal.SIGTERM  # before there was anything to keep
    return (told or early) and bench.resumes(layer, out)


def disk_full(bench: Bench, index: int) -> bool:
    """A full disk ends with one sentence; with room again --resume goes on, as above."""
    layer = bench.layers[index % len(bench.layers)]
    with small_disk(bench.folder / "disk", 400) as disk:
        filler, out = disk / "filler", disk / "run"
        while True:
            filler.unlink(missing_ok=True)
            shutil.rmtree(out, ignore_errors=True)
            room = bench.random.uniform(0.3, 0.9) * 130 * FILL_BLOCK
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
            filler.write_bytes(bytes(int(free - room)))
            run = bench.train(layer, out)
            if run.status:
                break  # else there was room enough this time
        told = run.status == 1 and "No space left on device" in run.output
        whole = "Traceback" not in run.output and not out.exists()
        filler.unlink()
        return told and whole and bench.resumes(layer, out)


def bit_flip(bench: Bench, index: int) -> bool:
    """One bit of the weights is flipped: ``evaluate`` refuses them."""
    layer = bench.layers[index % len(bench.layers)]
    path = bench.folder / f"whole-{layer}" / "weights.safetensors"
    content = path.read_bytes()
    flipped = bytearray(content)
    bit = bench.random.randrange(8 * len(content))
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    run = Command("evaluate", path.parent, around=Around(bench.folder / "log"))
    refused = run.status == 1 and "damaged" in run.output and "Traceback" not in run.output
    path.write_bytes(content)
    return refused


def overwrite_killed(bench: Bench, index: int) -> bool:
    """--overwrite, killed before it has ended: the old run is as it was.

    The new run takes the old one's place a moment before its process ends. Where the signal meets
    that moment, the new run has to be there whole, and another is tried.
    """
    layer, out = bench.copy(index)
    whole = bench.replacement(layer)
    while True:
        run = bench.train(layer, out, "--overwrite", *REPLACED_BY)
        moment = bench.random.uniform(0.1, 0.95) * bench.seconds[layer]
        alive = run.send_after(signal.SIGKILL, moment)
        found = digests(out)
        if alive and found != whole:
            return found == bench.expected[layer]
        layer, out = bench.copy(index)  # it was faster this time


def overwrite_failed(bench: Bench, index: int) -> bool:
    """--overwrite with a training that fails, a file being too large: the old run is as it was."""
    layer, out = bench.copy(index)
    largest = bench.random.randrange(500, 8000)
    run = bench.train(layer, out, "--overwrite", *REPLACED_BY, file_size=largest)
    told = run.status == 1 and "Traceback" not in run.output
    return told and digests(out) == bench.expected[layer]


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[Path]:
    """A file system of its own, of that size.

    Raises:
        PermissionError: this user cannot mount one.
    """
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"a small file system cannot be mounted ({done.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


FAULTS: dict[str, tuple[Callable[[Bench, int], bool], int]] = {
    "kill -9, resumed": (killed, TRIES),
    "SIGTERM, resumed": (terminated, TRIES),
    "disk full, resumed": (disk_full, TRIES),
    "bit flip in the weights, refused": (bit_flip, 3 * TRIES),
    "--overwrite killed, old run intact": (overwrite_killed, TRIES),
    "--overwrite failed, old run intact": (overwrite_failed, TRIES),
}


def _noted(right: bool) -> bool:
    """The same, with a mark for whoever waits."""
    print("." if right else "F", end="", file=sys.stderr, flush=True)
    return right


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--times", type=int, default=0, help="each fault so often")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), seed=options.seed)
        for name, (fault, count) in FAULTS.items():
            if options.only not in name:
                continue
            try:
                count = options.times or count
                right = sum(_noted(fault(bench, index)) for index in range(count))
            except PermissionError as error:
                print(f"{name:40} skipped: {error}", flush=True)
                continue
            wrong += count - right
            print(f"{name:40} {right} of {count}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
