"""Trajectories, their gradients and steady states against the floor, torchdiffeq and torchode
(``make bench-ode``)."""

from __future__ import annotations

from benchmarks.ode_contenders import contenders
from benchmarks.ode_problems import problems
from benchmarks.ode_report import page
from benchmarks.program import Program
from benchmarks.timing import keep_memory

PROGRAM = Program("ode", __doc__, problems, contenders, page)
main = PROGRAM.main

if __name__ == "__main__":
    keep_memory("benchmarks.ode")
    main()
