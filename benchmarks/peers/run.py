"""One command: sets up what is missing, measures every row on every engine in turn, writes one table and one plot.

    python -m benchmarks.peers.run                                   everything, medians of three
    python -m benchmarks.peers.run --rows decode,prefill --peers llama.cpp --reps 5
    python -m benchmarks.peers.run --reps-of vLLM=1,transformers=1   a third of the time goes to these two
    python -m benchmarks.peers.run --resume                          goes on with what an interrupted run lacks
    python -m benchmarks.peers.run --readme                          … and puts the table into the READMEs and docs/benchmarks.md
    python -m benchmarks.peers.run --report                          only writes table and plot again
    OCTAVO_PEERS_SMOKE=1 python -m benchmarks.peers.run --reps 1 --extra-reps 0 --patience 0      does everything work? (tiny lengths)

The report is saved after each row. Run it on a quiet machine: a repetition during which other processes took more than 4 % of the CPU is
measured again, up to three more times (``--extra-reps``); then the least disturbed ones count, and the report says how disturbed they were.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from benchmarks.kernels import ceilings
from benchmarks.peers import environments, limits, llamacpp, machine, workload
from benchmarks.peers.estimate import estimate_s
from benchmarks.peers.race import Entrant, Rules, race
from benchmarks.peers.report import SETTINGS, Note, Report, Result, fill
from benchmarks.peers.rows import ENGINES, LLAMA_CPP, OCTAVO, ROWS, memory_source
from benchmarks.peers.table import markdown, plot
from benchmarks.peers.variants import VARIANTS, Session, Setting, Variant, describe

ROOT = Path(__file__).parents[2]
WEIGHTS = ("Q4_1", "Q4_0", "int8", "bf16", "fp32")


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    default = {name: value for name, (_, value) in SETTINGS.items()}
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--dir", type=Path, default=environments.default_dir(), help="of the environments ($OCTAVO_PEERS or ~/peers)")
    parser.add_argument("--out", type=Path, help="folder of the report (<dir>/out)")
    parser.add_argument("--peers", default=",".join(ENGINES[1:]), help="with commas between them: " + ",".join(ENGINES[1:]) + ", or none")
    parser.add_argument("--rows", default=",".join(ROWS), help="with commas between them: " + ",".join(ROWS))
    parser.add_argument("--weights", default=",".join(WEIGHTS), help="with commas between them: " + ",".join(WEIGHTS))
    parser.add_argument("--reps", type=int, default=default["reps"], help="of each row and engine (3)")
    parser.add_argument("--reps-of", default=default["reps_of"], help="of engines or rows that get more or less of them: vLLM=1,decode=7")
    parser.add_argument("--extra-reps", type=int, default=3, help="how many disturbed repetitions may be repeated (3)")
    parser.add_argument("--patience", type=int, default=25, help="seconds to wait for a quiet machine before each repetition (25)")
    parser.add_argument("--threads", type=int, default=default["threads"])
    parser.add_argument(
        "--octavo-kv", default=default["octavo_kv_dtype"], choices=("fp32", "fp16", "int8"), help="Octavo's --kv-cache-dtype (fp16)"
    )
    parser.add_argument("--llama-slots", type=int, default=default["llama_slots"], help="llama-server's slots for the 64 requests (64)")
    parser.add_argument("--openvino-seqs", type=int, default=default["openvino_seqs"], help="OpenVINO's max_num_seqs (64)")
    parser.add_argument("--resume", action="store_true", help="keep what the report has already and measure what it lacks")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the table and the plot of the report that is there")
    parser.add_argument("--setup", action="store_true", help="only make the environments")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md, README.zh-CN.md and docs/benchmarks.md")
    chosen = parser.parse_args(argv)
    chosen.dir = chosen.dir.expanduser()
    chosen.out = chosen.out or chosen.dir / ("out-smoke" if workload.SMOKE else "out")
    chosen.peers = [] if chosen.peers == "none" else chosen.peers.split(",")
    chosen.rows, chosen.weights = chosen.rows.split(","), chosen.weights.split(",")
    for name, given, known in (
        ("--peers", chosen.peers, ENGINES[1:]),
        ("--rows", chosen.rows, tuple(ROWS)),
        ("--weights", chosen.weights, WEIGHTS),
    ):
        if unknown := [value for value in given if value not in known]:
            parser.error(f"{name} {','.join(unknown)}: known are {', '.join(known)}")
    if chosen.reps < 1:
        parser.error(f"--reps {chosen.reps}: at least 1")
    try:
        pairs = [entry.split("=") for entry in chosen.reps_of.split(",") if entry]
        chosen.rules = Rules(chosen.reps, chosen.extra_reps, chosen.patience, {engine: int(reps) for engine, reps in pairs})
    except ValueError:
        parser.error(f"--reps-of {chosen.reps_of}: engines or rows and numbers such as vLLM=1,decode=7")
    if unknown := [f"{e}={n}" for e, n in chosen.rules.reps_of.items() if e not in (*ENGINES, *ROWS) or n < 1]:
        parser.error(f"--reps-of {','.join(unknown)}: at least 1 of {', '.join((*ENGINES, *ROWS))}")
    if chosen.readme and workload.SMOKE:
        parser.error("--readme: OCTAVO_PEERS_SMOKE=1 gives no figures")
    return chosen


def plan(args: argparse.Namespace, report: Report) -> dict[str, list[Variant]]:
    """Which variants each row still needs, in the order of the table. Memory comes with the rows that it is read after."""
    chosen = [v for v in VARIANTS if v.engine in (OCTAVO, *args.peers) and v.weights in args.weights]
    planned: dict[str, list[Variant]] = {}
    for name, row in ROWS.items():
        wanted = []
        for variant in chosen:
            memory = "memory" in args.rows and name == memory_source(variant.engine) and not _known(report, "memory", variant)
            asked = name in args.rows and not _known(report, name, variant)
            if name in variant.rows and (asked or memory) and (row.fp32 or variant.weights != "fp32" or variant.engine != OCTAVO):
                wanted.append(variant)
        if wanted:
            planned[name] = wanted
    return planned


def _known(report: Report, row: str, variant: Variant) -> bool:
    return report.find(row, variant.engine, variant.weights) is not None


class Sessions:
    """The processes that are running. One stays for as long as rows of its group follow."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self._open: dict[tuple[str, str], Session] = {}

    def get(self, variant: Variant, row: str) -> Session:
        key = (variant.key, variant.group(row))
        if key not in self._open:
            self._open[key] = variant.open(self.setting, row)
        return self._open[key]

    def close_all_but(self, needed: set[tuple[str, str]]) -> None:
        for key in [key for key in self._open if key not in needed]:
            self._open.pop(key).stop()

    def close(self) -> None:
        self.close_all_but(set())


def measure(planned: dict[str, list[Variant]], setting: Setting, rules: Rules, report: Report, path: Path) -> None:
    """All rows, one after the other; the report is saved after each."""
    with ExitStack() as stack:
        sessions = Sessions(setting)
        stack.callback(sessions.close)
        for position, (name, variants) in enumerate(planned.items(), 1):
            say(f"[{position}/{len(planned)}] {ROWS[name].en}")
            entrants = []
            report.notes = [
                n for n in report.notes if n.row != name or not any((v.engine, v.weights) == (n.engine, n.weights) for v in variants)
            ]
            for variant in variants:
                try:
                    entrants.append(Entrant(variant.engine, variant.weights, sessions.get(variant, name)))
                except (RuntimeError, OSError) as error:
                    report.note(Note(name, variant.engine, variant.weights, str(error)))
                    say(f"  {name:9} {variant.key} FAILED: {error}")
            race(ROWS[name], entrants, rules, report, say)
            for entrant in entrants:
                if memory_source(entrant.engine) == name and entrant.session.pids and report.find(name, entrant.engine, entrant.weights):
                    peak = {"value": machine.peak_memory_mib(entrant.session.pids)}
                    report.add(Result("memory", entrant.engine, entrant.weights, [peak]))
            later = list(planned.items())[position:]
            sessions.close_all_but({(v.key, v.group(row)) for row, others in later for v in others})
            report.save(path)


def about(args: argparse.Namespace, setting: Setting) -> dict[str, object]:
    """Date, machine, versions, settings, limits and model sizes."""
    made = setting.environments
    peers = (
        {LLAMA_CPP: f"{llamacpp.version(made.llama_bin)}, from llama-cpp-python {environments.LLAMA_CPP_PYTHON}, native build"}
        if (LLAMA_CPP in args.peers and (made.llama_bin / "llama-server").exists())
        else {}
    )
    for engine, environment in (("OpenVINO", "openvino"), ("vLLM", "vllm"), ("transformers", "transformers")):
        if engine in args.peers:
            peers[engine] = ", ".join(r.replace("==", " ") for r in environments.REQUIREMENTS[environment] if "==" in r)
    found: dict[str, object] = {
        "date": time.strftime("%F %T"),
        "machine": machine.describe(),
        "versions": {"Octavo": version("octavo"), **peers},
        "settings": {**describe(setting), "reps": args.reps, "reps_of": args.reps_of},
    }
    files = {weights: made.gguf("F32" if weights == "fp32" else weights) for weights in ("Q4_1", "Q4_0", "fp32")}
    found["sizes"] = {w: asdict(limits.ModelSize.of(file, setting.octavo_kv_dtype)) for w, file in files.items() if file.exists()}
    try:
        machine.wait_for_quiet(patience_s=args.patience)
        found["limits"] = ceilings.measure(args.dir / "bin", args.threads)
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"limits are not measured: {error}")
    return found


def resumed(path: Path, setting: Setting, args: argparse.Namespace) -> Report | None:
    """The report to go on with. Raises ``ValueError`` if it was made with other settings."""
    if not path.exists():
        return None
    report = Report.load(path)
    now = {**describe(setting), "reps": args.reps, "reps_of": args.reps_of}
    if differing := [k for k, v in now.items() if report.about["settings"].get(k) != v]:
        raise ValueError(f"{path} was measured with another {', '.join(differing)}: it cannot be resumed")
    return report


def measured_earlier(path: Path) -> Report | None:
    """What the estimate can be made from; a file that is no report is of no use, and will be replaced."""
    try:
        return Report.load(path)
    except (OSError, ValueError):
        return None


def write(report: Report, out: Path, *, readme: bool) -> None:
    table = markdown(report)
    (out / "octavo-peers.md").write_text(table + "\n")
    plotted = plot(report, out / "octavo-peers.svg")
    if readme:
        fill(ROOT / "README.md", markdown(report, goals=False))
        fill(ROOT / "README.zh-CN.md", markdown(report, "zh", goals=False))
        fill(ROOT / "docs" / "benchmarks.md", table)
    print(table)
    say(f"\nwritten: {out}/octavo-peers.json, .md{', .svg' if plotted else ' (no plot: matplotlib is not installed)'}")


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    path = args.out / "octavo-peers.json"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    if args.report:
        write(Report.load(path), args.out, readme=args.readme)
        return 0
    from octavo.config import DEFAULT_MODEL
    from octavo.weights import resolve

    made = environments.Environments(args.dir, resolve(DEFAULT_MODEL))
    setting = Setting(made, args.threads, args.octavo_kv, args.llama_slots, args.openvino_seqs)
    variants = [v for v in VARIANTS if v.engine in (OCTAVO, *args.peers) and v.weights in args.weights]
    failures = made.ensure(say, frozenset().union(*(v.environments for v in variants)))
    if args.setup:
        say("all environments are ready" if not failures else f"not ready: {', '.join(failures)}")
        return 1 if failures else 0
    try:
        report = resumed(path, setting, args) if args.resume else None
    except ValueError as error:
        say(str(error))
        return 1
    earlier = measured_earlier(path)
    if report is None:
        report = Report(about(args, setting))
    planned = plan(args, report)
    for name, failed in failures.items():
        for variant in variants:
            if name in variant.environments:
                report.note(Note("all", variant.engine, variant.weights, failed))
    lacking = {(n.engine, n.weights) for n in report.notes if n.row == "all"}
    planned = {row: [v for v in vs if (v.engine, v.weights) not in lacking] for row, vs in planned.items()}
    say(f"{report.about['machine']}\n{report.about['versions']}\n{report.about.get('limits')}")
    say(f"estimate: {estimate_s(planned, args.rules, earlier) / 60:.0f} minutes on a quiet machine")
    started = time.monotonic()
    measure(planned, setting, args.rules, report, path)
    if "limits" in report.about:
        report.about["limits"] = ceilings.best(report.about["limits"], ceilings.measure(args.dir / "bin", args.threads))
    report.about["took_s"] = report.about.get("took_s", 0) + round(time.monotonic() - started)
    report.save(path)
    write(report, args.out, readme=args.readme)
    return 0


if __name__ == "__main__":
    sys.exit(main())
