"""Equilibria: forward solve and implicit gradient against the floor, TorchDEQ and loops written by
hand (``make bench-root``)."""

from __future__ import annotations

from benchmarks.program import Program
from benchmarks.root_contenders import contenders
from benchmarks.root_problems import problems
from benchmarks.root_report import page
from benchmarks.timing import keep_memory

PROGRAM = Program("root", __doc__, problems, contenders, page)
main = PROGRAM.main

if __name__ == "__main__":
    keep_memory("benchmarks.root")
    main()
