"""The report: one JSON file with every repetition, from which a run can be resumed, and the medians that tables and plots are made of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.limits import Limits, ModelSize
from benchmarks.peers.rows import ENGINES, FP32_MUST, FP32_REACH, OCTAVO, ROWS, Figure, Goal, Row, Share, Times

SETTINGS: Mapping[str, tuple[str, Any]] = {
    "reps": ("--reps", 3),
    "reps_of": ("--reps-of", ""),
    "threads": ("--threads", 2),
    "octavo_kv_dtype": ("--octavo-kv", "fp16"),
    "llama_slots": ("--llama-slots", 64),
    "openvino_seqs": ("--openvino-seqs", 64),
}
"""What figures depend on: its name in the report → option and default."""


@dataclass
class Result:
    """One row of one engine with one kind of weights. ``runs`` count; ``disturbed`` were thrown away for busy neighbours."""

    row: str
    engine: str
    weights: str
    runs: list[dict[str, float]]
    disturbed: list[dict[str, float]] = field(default_factory=list)

    @property
    def value(self) -> float:
        return median(run["value"] for run in self.runs)

    @property
    def other_cpu(self) -> float:
        return max(run.get("other_cpu", 0.0) for run in self.runs)


@dataclass
class Note:
    """Why a figure is missing."""

    row: str
    engine: str
    weights: str
    text: str


@dataclass
class Report:
    """``about``: date, machine, versions, settings, limits. A run that was interrupted is continued from its file."""

    about: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    def find(self, row: str, engine: str, weights: str) -> Result | None:
        return next((r for r in self.results if (r.row, r.engine, r.weights) == (row, engine, weights)), None)

    def value(self, row: str, engine: str, weights: str) -> float | None:
        found = self.find(row, engine, weights)
        return None if found is None else found.value

    def add(self, result: Result) -> None:
        self.results = [r for r in self.results if (r.row, r.engine, r.weights) != (result.row, result.engine, result.weights)]
        self.results.append(result)

    def note(self, note: Note) -> None:
        self.notes = [n for n in self.notes if (n.row, n.engine, n.weights) != (note.row, note.engine, note.weights)]
        self.notes.append(note)

    def save(self, path: Path) -> None:
        """All at once: a run that is ended leaves the file of its last row."""
        path.parent.mkdir(parents=True, exist_ok=True)
        results = [{**asdict(r), "median": r.value, "max_other_cpu": r.other_cpu} for r in self.results]
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({**self.about, "results": results, "notes": [asdict(n) for n in self.notes]}, indent=1) + "\n")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Report:
        """Raises ``OSError`` or ``ValueError`` for a file that is none."""
        about = json.loads(path.read_text())
        try:
            results, notes = about.pop("results"), about.pop("notes")
            fields = ("row", "engine", "weights", "runs", "disturbed")
            return cls(about, [Result(**{name: r[name] for name in fields}) for r in results], [Note(**n) for n in notes])
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no report of this benchmark: {error!r}") from error

    def command(self) -> str:
        """Which one measures this again, however many runs it was made in."""
        found = [name for name in ROWS if any(r.row == name for r in self.results)]
        peers = [engine for engine in ENGINES[1:] if any(r.engine == engine for r in self.results)]
        options = [] if found == list(ROWS) else ["--rows", ",".join(found)]
        options += [] if peers == list(ENGINES[1:]) else ["--peers", ",".join(peers) or "none"]
        for name, (option, default) in SETTINGS.items():
            value = self.about["settings"].get(name, default)
            options += [] if value == default else [option, str(value)]
        return "make bench-peers" + (f' BENCH_ARGS="{" ".join(options)}"' if options else "")

    def limit(self, row: str, weights: str) -> float | None:
        """The best that this machine allows, in the row's unit, as measured in the same run."""
        found, sizes = self.about.get("limits"), self.about.get("sizes", {})
        if not found or weights not in sizes:
            return None
        gops = found["float_gflops"] if weights == "fp32" else found["int8_gops"]
        return Limits(found["read_gb_s"], gops, ModelSize(**sizes[weights])).best(row)


@dataclass(frozen=True)
class Line:
    """A row of the table: one workload with our four-bit file (beside everything that peers have), or all in fp32.

    ``peers``: engine, weights, value. ``best``: the best of them. ``others``: our own other weights and their values, none for fp32.
    """

    row: Row
    weights: str
    ours: float | None
    peers: list[tuple[str, str, float]]
    limit: float | None
    others: tuple[tuple[str, float], ...] = ()

    @property
    def best(self) -> tuple[str, str, float] | None:
        if not self.peers:
            return None
        value = self.row.best([value for _, _, value in self.peers])
        return next(peer for peer in self.peers if peer[2] == value)

    @property
    def ratio(self) -> float | None:
        return None if self.ours is None or self.best is None else self.row.ratio(self.ours, self.best[2])

    @property
    def share(self) -> float | None:
        """Of the physical limit."""
        return None if self.ours is None or self.limit is None else self.row.ratio(self.ours, self.limit)

    def must(self) -> list[Check]:
        if self.weights == "fp32":
            return [] if self.ratio is None else [Check("1.0 × the best in fp32", self.ratio, FP32_MUST)]
        return [check for goal in self.row.must if (check := self.check(goal)) is not None]

    def reach(self) -> Check | None:
        return self.check(FP32_REACH if self.weights == "fp32" else self.row.reach)

    def check(self, goal: Goal) -> Check | None:
        """``None`` where what the goal is measured by is missing. Beside an engine's best weights count our best ones too."""
        if self.ours is None:
            return None
        if isinstance(goal, Share):
            return None if self.share is None else Check(f"{goal.share:.0%} of the limit", self.share, goal.share, percent=True)
        if isinstance(goal, Figure):
            return Check(f"{goal.value:g} {self.row.unit}", self.row.ratio(self.ours, goal.value), 1.0)
        theirs = [v for engine, weights, v in self.peers if engine == goal.engine and goal.weights in (None, weights)]
        if not theirs:
            return None
        name = f"{goal.times:g} × {goal.engine}" + (f" {goal.weights}" if goal.weights else "")
        ours = [(self.weights, self.ours), *(self.others if goal.weights is None else ())]
        value = self.row.best([value for _, value in ours])
        weights = next(weights for weights, v in ours if v == value)
        return Check(name, self.row.ratio(value, self.row.best(theirs)), goal.times, weights="" if weights == self.weights else weights)


@dataclass(frozen=True)
class Check:
    """A goal beside what was measured: ``got`` has to be at least ``needed``, both in the goal's own measure."""

    goal: str
    got: float
    needed: float
    percent: bool = False
    weights: str = ""
    """Ours, where they are not the row's."""

    @property
    def met(self) -> bool:
        return self.got >= self.needed

    def __str__(self) -> str:
        got = f"{self.got:.0%}" if self.percent else f"{self.got:.2f}"
        weights = f" ({self.weights})" if self.weights else ""
        return f"{self.goal}: {got}{weights} {'✓' if self.met else '✗'}"


def lines(report: Report, ours: str = "Q4_1") -> list[Line]:
    """The table's rows for which anything was measured: four bits first, then fp32 beside fp32."""
    made = []
    for weights in (ours, "fp32"):
        for row in ROWS.values():
            if weights == "fp32" and not row.fp32:
                continue
            found = [r for r in report.results if r.row == row.name and r.engine != OCTAVO and (weights != "fp32" or r.weights == "fp32")]
            peers = [(r.engine, r.weights, r.value) for r in found]
            value = report.value(row.name, OCTAVO, weights)
            if value is not None or (peers and weights != "fp32"):
                ours_too = [r for r in report.results if r.row == row.name and r.engine == OCTAVO and r.weights not in ("fp32", weights)]
                others = () if weights == "fp32" else tuple((r.weights, r.value) for r in ours_too)
                made.append(Line(row, weights, value, peers, report.limit(row.name, weights), others))
    return made


def fill(readme: Path, text: str) -> None:
    """Puts ``text`` between the ``bench`` markers of a README. Raises ``ValueError`` if it has none."""
    old = readme.read_text()
    new, found = re.subn(r"(<!-- bench -->\n).*?(<!-- /bench -->)", lambda m: f"{m[1]}{text}\n{m[2]}", old, flags=re.DOTALL)
    if not found:
        raise ValueError(f"{readme} has no <!-- bench --> … <!-- /bench --> to fill")
    readme.write_text(new)


__all__ = ["Check", "Line", "Note", "Report", "Result", "Times", "fill", "lines"]
