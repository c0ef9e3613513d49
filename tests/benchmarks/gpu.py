"""Equilibria on a GPU: whole training steps with each backend and a compiled cell, against TorchDEQ
(``make bench-gpu``)."""

from __future__ import annotations

from benchmarks.gpu_contenders import contenders
from benchmarks.gpu_report import page
from benchmarks.program import Program
from benchmarks.root_problems import problems

PROGRAM = Program("gpu", __doc__, problems, contenders, page, devices=("cuda", "cpu"))
main = PROGRAM.main

if __name__ == "__main__":
    main()
