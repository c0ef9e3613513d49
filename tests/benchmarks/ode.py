"""Trajectories, their gradients and steady states against the floor, torchdiffeq and torchode
(``make bench-ode``)."""

from __future__ import annotations

from benchmarks.curves import ENDS
from benchmarks.ode_contenders import contenders
from benchmarks.ode_problems import problems
from benchmarks.ode_report import page
from benchmarks.program import Program
from benchmarks.timing import keep_memory

PICTURES = {
    "ode_curves": f"""\
What a trajectory of an MLP field costs at 1e-5, forward, without a gradient: 32 samples of 32
entries over one unit of time, but for what varies. {ENDS}""",
    "precision": f"""\
Work against precision, float64, forward: each point is a tolerance from 1e-3 to 1e-9. SciPy takes
the batch as one state; diffrax is compiled ahead, and its evaluations are not counted. Time
is the processor's. {ENDS}""",
}
PROGRAM = Program("ode", __doc__, problems, contenders, page, pictures=PICTURES)
main = PROGRAM.main

if __name__ == "__main__":
    keep_memory("benchmarks.ode")
    main()
