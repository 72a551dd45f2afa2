"""One command: builds llama.cpp if it is not there, runs every workload on both engines in turn, writes the report.

    python -m benchmarks.peers.run                       everything, medians of five (about a quarter of an hour)
    python -m benchmarks.peers.run --only decode,prefill --reps 3
    python -m benchmarks.peers.run --readme              … and puts the table into the READMEs

Engines alternate, repetition by repetition, and each begins when the machine is quiet. A repetition during which other processes
took more than 4 % of the CPU is measured again, up to three more times (``--extra-reps``); then the least disturbed ones count, and
the report says how disturbed they were.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers import llamacpp, machine, workload
from benchmarks.peers.octavo_peer import OctavoServer, OctavoWorker
from benchmarks.peers.report import LLAMA_CPP, OCTAVO, WORKLOADS, Report, Result, fill, markdown, plot

ROOT = Path(__file__).parents[2]
EXTRA_REPS = 3
PORTS = {LLAMA_CPP: 18080, OCTAVO: 18081}

Measure = Callable[[int], dict[str, float]]


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def measured(measure: Measure, pids: tuple[int, ...], rep: int) -> dict[str, float]:
    """One repetition in a quiet moment, with its wall time and the CPU that others took meanwhile."""
    machine.wait_for_quiet()
    watch = machine.Watch(pids)
    watch.start()
    started = time.perf_counter()
    figures = measure(rep)
    return {"rep": rep, **figures, "wall_s": time.perf_counter() - started, "other_cpu": watch.other_cpu()}


def race(name: str, engines: dict[str, tuple[Measure, tuple[int, ...]]], reps: int, report: Report, extra_reps: int = EXTRA_REPS) -> None:
    """``reps`` undisturbed repetitions of each engine, alternating; after ``extra_reps`` more, the least disturbed ones."""
    good: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    bad: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
    for measure, _ in engines.values():
        measure(workload.WARM_UP)
    for rep in range(reps + extra_reps):
        for engine, (measure, pids) in engines.items():
            if len(good[engine]) < reps:
                figures = measured(measure, pids, rep)
                kept = good if figures["other_cpu"] <= machine.MAX_OTHER_CPU else bad
                kept[engine].append(figures)
                mark = "" if kept is good else "  (disturbed)"
                say(f"  {name:8} {engine:10} {figures['tok_s']:9.1f} tok/s   others {figures['other_cpu']:.1%}{mark}")
    for engine in engines:
        bad[engine].sort(key=lambda run: run["other_cpu"])
        lacking = reps - len(good[engine])
        runs, rest = good[engine] + bad[engine][:lacking], bad[engine][lacking:]
        report.results.append(Result(name, engine, runs, rest))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--peers", type=Path, default=Path("~/peers"), help="where peers are built and logs are kept (~/peers)")
    parser.add_argument("--out", type=Path, help="folder of the report (<peers>/out)")
    parser.add_argument("--model", help="a GGUF file for both (the default model)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=5)
    parser.add_argument("--extra-reps", type=int, default=EXTRA_REPS, help="how many disturbed repetitions may be repeated (3)")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, with commas between them: " + ",".join(WORKLOADS))
    parser.add_argument("--llama-parallel", type=int, help="llama-server's slots (default: the best of 8, 16, 32 and 64, measured first)")
    parser.add_argument("--skip-llama", action="store_true", help="measure Octavo alone")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md and README.zh-CN.md")
    chosen = parser.parse_args(argv)
    chosen.peers = chosen.peers.expanduser()
    chosen.out = chosen.out or chosen.peers / "out"
    chosen.only = chosen.only.split(",")
    unknown = [name for name in chosen.only if name not in WORKLOADS]
    if unknown or chosen.reps < 1:
        parser.error(f"--only {','.join(unknown)}: known are {', '.join(WORKLOADS)}" if unknown else "--reps must be at least 1")
    return chosen


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    from octavo.config import DEFAULT_MODEL
    from octavo.weights import resolve

    model = resolve(args.model or DEFAULT_MODEL)
    logs = args.peers / "logs"
    tools = None if args.skip_llama else llamacpp.ensure_built(args.peers, args.threads)
    versions = {
        "octavo": version("octavo"),
        "llama.cpp": llamacpp.version(tools) if tools else "not measured",
        "llama-cpp-python": llamacpp.VERSION,
    }
    settings = {"model": model.name, "threads": args.threads, "reps": args.reps}
    report = Report({"date": time.strftime("%F %T"), "machine": machine.describe(), "versions": versions, "settings": settings})
    say(f"{report.about['machine']}\n{versions}")

    with ExitStack() as stack:
        inside = [name for name in args.only if name in ("decode", "prefill", "offline")]
        if inside:
            worker = OctavoWorker(model, args.threads, logs / "octavo-worker.log")
            stack.callback(worker.stop)
            ours = {"decode": worker.decode, "prefill": worker.prefill, "offline": worker.serving}
            bench = llamacpp.LlamaBench(tools, model, args.threads) if tools else None
            for name in inside:
                engines: dict[str, tuple[Measure, tuple[int, ...]]] = {OCTAVO: (ours[name], worker.pids)}
                if bench is not None and name != "offline":
                    engines[LLAMA_CPP] = ({"decode": bench.decode, "prefill": bench.prefill}[name], bench.pids)
                race(name, engines, args.reps, report, args.extra_reps)
            worker.stop()
        if "serving" in args.only:
            log = logs / "llama-server.log"
            engines = {}
            if tools:
                settings["llama_parallel"], rates = (
                    (args.llama_parallel, {})
                    if args.llama_parallel
                    else llamacpp.best_parallel(tools, model, args.threads, PORTS[LLAMA_CPP], log, (8, 16, 32, 64))
                )
                report.about["llama_parallel_sweep_tok_s"] = rates
                theirs = llamacpp.LlamaServer(tools, model, args.threads, settings["llama_parallel"], PORTS[LLAMA_CPP], log)
                stack.callback(theirs.stop)
                engines[LLAMA_CPP] = (theirs.serving, theirs.pids)
                report.start_s[LLAMA_CPP] = theirs.server.start_s
            served = OctavoServer(model, args.threads, PORTS[OCTAVO], logs / "octavo-server.log")
            stack.callback(served.stop)
            engines = {OCTAVO: (served.serving, served.pids), **engines}
            report.start_s[OCTAVO] = served.server.start_s
            race("serving", engines, args.reps, report, args.extra_reps)
            report.peak_memory_mib = {engine: machine.peak_memory_mib(pids) for engine, (_, pids) in engines.items()}

    args.out.mkdir(parents=True, exist_ok=True)
    report.save(args.out / "octavo-peers.json")
    table = markdown(report)
    (args.out / "octavo-peers.md").write_text(table + "\n")
    plotted = plot(report, args.out / "octavo-peers.svg")
    if args.readme:
        fill(ROOT / "README.md", table)
        fill(ROOT / "README.zh-CN.md", markdown(report, "zh"))
    print(table)
    say(f"\nwritten: {args.out}/octavo-peers.json, .md{', .svg' if plotted else ' (no plot: matplotlib is not installed)'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
