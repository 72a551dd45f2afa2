"""One command: every kernel, format, shape and number of rows beside the measured ceilings; a table, a JSON file and a plot.

    python -m benchmarks.kernels.run                                  everything, about six minutes
    python -m benchmarks.kernels.run --kernels linear --formats Q4_1,F32 --rows 1,64,512
    python -m benchmarks.kernels.run --threads 1 --seconds 1
    OCTAVO_ISA=avx2 python -m benchmarks.kernels.run                  the kernels of that family, beside what its instructions can do

A point is the 10th percentile of its runs, so work of others on the machine does little harm as long as there are gaps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from benchmarks.kernels import bench, ceilings
from benchmarks.kernels.bench import Point, Setting, Shapes
from benchmarks.peers import machine
from octavo.backends.native.executable import ISA_VARIABLE
from octavo.config import KVDType

KERNELS = ("linear", "attention", "rows", "choose")
DECODES = ((1, 128), (1, 1024), (1, 8192), (8, 1024), (64, 128), (64, 1024))
"""Sequences and the position that each decodes."""
PREFILLS = ((1, 512, 0), (1, 512, 3584), (64, 8, 1024))
"""Sequences, their tokens, their context."""
KV_DTYPES: tuple[KVDType, ...] = ("fp16", "fp32", "int8")


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def points(args: argparse.Namespace, setting: Setting, shapes: Shapes) -> Iterator[Point]:
    """In the order of the table."""
    if "linear" in args.kernels:
        for kind in bench.FORMATS:
            for name in shapes.linears if kind.name in args.formats else ():
                yield from bench.linear_points(setting, shapes, kind, name, args.rows)
    if "attention" in args.kernels:
        for dtype in KV_DTYPES:
            for sequences, position in DECODES:
                yield bench.attention_point(setting, shapes, dtype, sequences, 1, position - 1)
            for sequences, tokens, context in PREFILLS:
                yield bench.attention_point(setting, shapes, dtype, sequences, tokens, context)
    if "rows" in args.kernels:
        yield from bench.row_points(setting, shapes, args.rows)
    if "choose" in args.kernels:
        yield from bench.choice_points(setting, shapes, [1, 8, 64])


def markdown(found: list[Point], about: dict[str, object], limits: dict[str, float]) -> str:
    """One line for each point, and what the ceilings are."""
    rows = ["| kernel | case | rows | µs | GB/s | GOPS | of the roofline |", "|---|---|--:|--:|--:|--:|--:|"]
    for p in found:
        rows.append(f"| {p.kernel} | {p.case} | {p.rows} | {p.seconds * 1e6:,.1f} | {p.gb_s:.1f} | {p.gops:,.0f} | {p.share(limits):.0%} |")
    note = (
        f"{about['date']}, {about['cpu']}, {about['threads']} threads, {about['isa']} kernels, shapes of {about['model']}. Ceilings, "
        f"the best before and after: {limits['read_gb_s']:.1f} GB/s read, {limits['float_gflops']:.0f} GFLOPS fp32, "
        f"{limits['int8_gops']:.0f} GOPS int8. Weights of up to "
        f"{bench.MEMORY_BOUND_ROWS} rows and long contexts come from memory; rows, short contexts of few sequences and few logits come "
        f"from caches, which are faster than that ceiling. `{about['command']}`"
    )
    return "\n".join([*rows, "", note])


def plot(found: list[Point], limits: dict[str, float], path: Path) -> bool:
    """GOPS over operations per byte, below the roof of each kind of arithmetic; ``False`` where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", sharex=True)
    for axes, arithmetic in zip(panels, ("int8_gops", "float_gflops"), strict=True):
        chosen = [p for p in found if p.arithmetic == arithmetic and p.kernel in ("linear", "attention")]
        intensity = np.geomspace(0.25, 2000, 200)
        axes.loglog(intensity, np.minimum(limits["read_gb_s"] * intensity, limits[arithmetic]), color="#444444", linewidth=1)
        for name in dict.fromkeys(p.case.split()[0] + " " + p.kernel for p in chosen):
            mine = [p for p in chosen if p.case.split()[0] + " " + p.kernel == name]
            axes.scatter([p.num_ops / p.num_bytes for p in mine], [p.gops for p in mine], s=14, label=name)
        axes.set_title(f"{'integer' if arithmetic == 'int8_gops' else 'fp32'} kernels below their roof", loc="left", fontsize=10)
        axes.set_xlabel("operations per byte")
        axes.set_ylabel("GOPS")
        axes.spines[["top", "right"]].set_visible(False)
        if chosen:
            axes.legend(fontsize=7)
    figure.savefig(path)
    plt.close(figure)
    return True


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels.run", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    known = ",".join(kind.name for kind in bench.FORMATS)
    parser.add_argument("--kernels", default=",".join(KERNELS), help="with commas between them: " + ",".join(KERNELS))
    parser.add_argument("--formats", default=known, help="of linear: " + known)
    parser.add_argument("--rows", default="1,2,4,8,32,64,256,512", help="of linear and the row kernels (1,2,4,8,32,64,256,512)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.3, help="how long a point is measured (0.3)")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench-kernels"), help="folder of table, JSON and plot (build/bench-kernels)"
    )
    chosen = parser.parse_args(argv)
    chosen.kernels, chosen.formats = chosen.kernels.split(","), chosen.formats.split(",")
    for name, given, names in (("--kernels", chosen.kernels, KERNELS), ("--formats", chosen.formats, tuple(known.split(",")))):
        if unknown := [value for value in given if value not in names]:
            parser.error(f"{name} {','.join(unknown)}: known are {', '.join(names)}")
    try:
        chosen.rows = [int(value) for value in chosen.rows.split(",")]
    except ValueError:
        parser.error(f"--rows {chosen.rows}: numbers with commas between them")
    if min(chosen.rows) < 1 or chosen.threads < 1:
        parser.error(f"--rows {min(chosen.rows)} --threads {chosen.threads}: at least 1")
    return chosen


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    setting, shapes = Setting(args.threads, args.seconds), Shapes()
    machine.wait_for_quiet(patience_s=5)
    try:
        limits = ceilings.measure(args.out, args.threads)
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"the ceilings cannot be measured: {error}")
        return 1
    from octavo import _native

    isa = _native.select_isa_family(os.environ.get(ISA_VARIABLE, ""))
    about: dict[str, object] = {
        "date": time.strftime("%F %T"),
        "command": " ".join(["python -m benchmarks.kernels.run", *(argv if argv is not None else sys.argv[1:])]),
        **machine.describe(),
        "threads": args.threads,
        "isa": isa,
        "model": shapes.name,
    }
    limits = ceilings.of_family(limits, isa)
    say(f"{about}\n{limits}")
    found = []
    for p in points(args, setting, shapes):
        found.append(p)
        say(
            f"  {p.kernel:10}{p.case:28}{p.rows:5} rows{p.seconds * 1e6:11.1f} µs{p.gb_s:8.1f} GB/s{p.gops:8.0f} GOPS{p.share(limits):6.0%}"
        )
    limits = ceilings.best(limits, ceilings.of_family(ceilings.measure(args.out, args.threads), isa))
    table = markdown(found, about, limits)
    (args.out / "kernels.md").write_text(table + "\n")
    record = {
        **about,
        "ceilings": limits,
        "points": [{**asdict(p), "gb_s": p.gb_s, "gops": p.gops, "share": p.share(limits)} for p in found],
    }
    (args.out / "kernels.json").write_text(json.dumps(record, indent=1) + "\n")
    plotted = plot(found, limits, args.out / "kernels.svg")
    print(table)
    say(f"written: {args.out}/kernels.md, .json{', .svg' if plotted else ' (no plot: matplotlib is not installed)'}")
    return 0


__all__ = ["arguments", "main", "markdown", "plot", "points"]

if __name__ == "__main__":
    sys.exit(main())
