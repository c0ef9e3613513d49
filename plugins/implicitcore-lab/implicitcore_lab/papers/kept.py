"""What is measured of each row with each seed, kept on the disk as it is finished."""

from __future__ import annotations

import json
from collections.abc import Callable

from implicitcore_lab.experiment import cpu_threads
from implicitcore_lab.papers.table import Figures, Job, Results
from implicitcore_lab.settings import Settings
from implicitcore_lab.storage import storing, write_atomic


def measure_rows(job: Job, measure: Callable[[str, int], Figures]) -> Results:
    """Measure seed after seed; with ``job.resume`` what is there already is not measured again.

    Arguments:
        job: what is to be measured.
        measure: the figures of a row, by its name, with a seed.
    """
    results: dict[str, list[Figures]] = {row.name: [] for row in job.rows}
    with cpu_threads(Settings(threads=1)):  # the products are small
        for seed in job.seeds:
            for name, figures in _seed(seed, job, measure).items():
                results[name].append(figures)
    return results


def _seed(seed: int, job: Job, measure: Callable[[str, int], Figures]) -> dict[str, Figures]:
    path = job.output / "runs" / f"seed-{seed}.json"
    settings = dict(job.budget.settings)
    found = json.loads(path.read_text()) if job.resume and path.exists() else {}
    if found.get("settings") != settings:
        found = {"settings": settings, "rows": {}}
    for row in job.rows:
        if row.name not in found["rows"]:
            found["rows"][row.name] = dict(measure(row.name, seed))
            with storing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, (json.dumps(found, indent=2) + "\n").encode())
            job.console.print(f"seed {seed}  {row.title}")
    return {row.name: found["rows"][row.name] for row in job.rows}
