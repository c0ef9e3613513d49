"""Equilibria: forward solve and implicit gradient against the floor, TorchDEQ and loops written by
hand (``make bench-root``)."""

from __future__ import annotations

from benchmarks.curves import ENDS
from benchmarks.program import Program
from benchmarks.root_contenders import contenders
from benchmarks.root_problems import problems
from benchmarks.root_report import page
from benchmarks.timing import keep_memory

PICTURES = {
    "root_curves": f"""\
What an iteration costs where f is tanh(w z + x) by entries and nothing but calls and memory counts
(20 iterations, forward, without a gradient): by itself, beside f, and beside a copy of the state,
which is what the memory's bandwidth allows. {ENDS}""",
}
PROGRAM = Program("root", __doc__, problems, contenders, page, pictures=PICTURES)
main = PROGRAM.main

if __name__ == "__main__":
    keep_memory("benchmarks.root")
    main()
