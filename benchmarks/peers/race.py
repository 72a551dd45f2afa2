"""One row: every entrant in turn, repetition by repetition, each begun when the machine is quiet.

A repetition during which other processes took more than ``machine.MAX_OTHER_CPU`` of the CPU is measured again; after ``extra_reps``
more, the least disturbed ones count. An entrant that fails leaves a note and the race goes on without it.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.peers import machine, workload
from benchmarks.peers.report import Note, Report, Result
from benchmarks.peers.rows import Row
from benchmarks.peers.variants import Session

Say = Callable[[str], None]


@dataclass(frozen=True)
class Entrant:
    engine: str
    weights: str
    session: Session


@dataclass(frozen=True)
class Rules:
    """``reps_of``: of engines and rows that get another number of repetitions; an engine's counts in every row."""

    reps: int
    extra_reps: int = 3
    patience_s: int = 25
    reps_of: Mapping[str, int] = field(default_factory=dict)

    def of(self, engine: str, row: str) -> int:
        return self.reps_of.get(engine, self.reps_of.get(row, self.reps))


def measured(entrant: Entrant, row: str, rep: int, patience_s: int) -> dict[str, float]:
    """One repetition in a quiet moment, with its wall time and the CPU that others took meanwhile."""
    began = time.perf_counter()
    machine.wait_for_quiet(patience_s=patience_s)
    watch = machine.Watch(lambda: entrant.session.pids)
    watch.start()
    started = time.perf_counter()
    figures = entrant.session.measure(row, rep)
    ended = time.perf_counter()
    other_cpu = watch.other_cpu()
    entrant.session.clear()
    return {"rep": rep, **figures, "wall_s": ended - started, "waited_s": started - began, "other_cpu": other_cpu}


def race(row: Row, entrants: Sequence[Entrant], rules: Rules, report: Report, say: Say) -> None:
    """As many undisturbed repetitions of each entrant as the rules say, added to the report."""
    good: dict[Entrant, list[dict[str, float]]] = {entrant: [] for entrant in entrants}
    bad: dict[Entrant, list[dict[str, float]]] = {entrant: [] for entrant in entrants}

    def attempt(entrant: Entrant, what: Callable[[], dict[str, float]]) -> dict[str, float] | None:
        try:
            return what()
        except (RuntimeError, OSError, ValueError, subprocess.SubprocessError) as error:
            report.note(Note(row.name, entrant.engine, entrant.weights, str(error)))
            say(f"  {row.name:9} {entrant.engine:13}{entrant.weights:5} FAILED: {error}")
            good.pop(entrant), bad.pop(entrant)
            return None

    if row.warm_up is not None:
        for entrant in entrants:
            attempt(entrant, lambda entrant=entrant: entrant.session.measure(row.warm_up, workload.WARM_UP))  # type: ignore[misc]
            entrant.session.clear()
    reps = {entrant: rules.of(entrant.engine, row.name) for entrant in entrants}
    for rep in range(max(reps.values()) + rules.extra_reps if entrants else 0):
        for entrant in [e for e in entrants if e in good and len(good[e]) < reps[e] and rep < reps[e] + rules.extra_reps]:
            figures = attempt(entrant, lambda entrant=entrant, rep=rep: measured(entrant, row.name, rep, rules.patience_s))  # type: ignore[misc]
            if figures is None:
                continue
            quiet = figures["other_cpu"] <= machine.MAX_OTHER_CPU
            (good if quiet else bad)[entrant].append(figures)
            mark = "" if quiet else "  (disturbed)"
            value = f"{figures['value']:9.4g} {row.unit}"
            say(f"  {row.name:9} {entrant.engine:13}{entrant.weights:5}{value}   others {figures['other_cpu']:.1%}{mark}")
    for entrant, runs in good.items():
        rest = sorted(bad[entrant], key=lambda run: run["other_cpu"])
        lacking = reps[entrant] - len(runs)
        report.add(Result(row.name, entrant.engine, entrant.weights, runs + rest[:lacking], rest[lacking:]))
