"""The report as Markdown, in English and in Chinese, and as a plot where matplotlib is installed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.peers.report import Check, Line, Report, lines
from benchmarks.peers.rows import ENGINES, LLAMA_CPP, OCTAVO, OPENVINO, ROWS, TRANSFORMERS, VLLM, memory_source

WORDS = {
    "en": {
        "head": ("", "times as good", "must", "reach", "of the limit"),
        "limit": "{:.0%} of the limit",
        "goals": (),
        "missing": "Not measured:",
        "marks": "✓ and ✗ compare what was measured with the goal before the colon, as multiples. ",
        "note": (
            "Medians of {reps}, engines in turn in one run ({date}), on {cores} cores of {cpu}, {threads} threads each, "
            "SmolLM2-135M-Instruct, the same token ids and lengths for all; other processes took at most {other:.1%} of the CPU. "
            "{goals}"
            "This machine reads {read:.0f} GB/s and computes {float:.0f} GFLOPS in fp32, {int8:.0f} GOPS in int8; the limit is what these "
            "allow for weights, keys and values alone. Peak memory is read after the 64 requests; Octavo's KV cache "
            "has room for just these. {versions}. "
            "`{command}` measures it again."
        ),
    },
    "zh": {
        "head": ("", "倍数", "必须达到", "力争达到", "占极限"),
        "limit": "极限的 {:.0%}",
        "goals": ((r"(\d+%) of the limit", r"极限的 \1"), ("the best in fp32", "fp32 最佳者")),
        "missing": "未测量：",
        "marks": "✓ 与 ✗ 表示冒号后的实测倍数是否达到冒号前的目标。",
        "note": (
            "各引擎在同一次运行中轮流测量，取 {reps} 次的中位数（{date}）；{cpu}，{cores} 核，各用 {threads} 个线程；模型 "
            "SmolLM2-135M-Instruct，所有引擎的 token 与长度相同；其他进程占用 CPU 不超过 {other:.1%}。"
            "{goals}本机读内存 {read:.0f} GB/s，fp32 {float:.0f} GFLOPS，int8 {int8:.0f} GOPS；"
            "“极限”只计读写权重与 KV 以及权重乘法所需的时间。峰值内存在 64 个请求之后读取，Octavo 的 KV 缓存恰好容得下这些请求。"
            "{versions}。用 `{command}` 可重新测量。"
        ),
    },
}
PLOT_COLOURS = {OCTAVO: "#35637c", LLAMA_CPP: "#b0562f", OPENVINO: "#7a8f4b", VLLM: "#8a6fa8", TRANSFORMERS: "#9a9a9a"}


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _cell(line: Line, engine: str) -> str:
    """All that an engine reached in a row: the best weights first, each named."""
    theirs = sorted((p for p in line.peers if p[0] == engine), key=lambda p: p[2], reverse=line.row.better == "more")
    return " · ".join(f"{number(value)} ({weights})" for _, weights, value in theirs) or "–"


def _others(line: Line) -> str:
    """Octavo's own figure; in a four-bit row, those with other weights too."""
    others = (f" · {number(value)} ({weights})" for weights, value in sorted(line.others))
    return f"**{number(line.ours)}** ({line.weights})" + "".join(others)


def _goal(check: Check, words: Mapping[str, Any]) -> str:
    text = str(check)
    for pattern, other in words["goals"]:
        text = re.sub(pattern, other, text)
    return text


def markdown(report: Report, language: str = "en", *, goals: bool = True) -> str:
    """The table, what could not be measured and why, and what was measured on what. Without ``goals``: how much of what the machine allows
    was reached, instead of what was meant to be."""
    words: dict[str, Any] = WORDS[language]
    name, ratio_head, must_head, reach_head, limit_head = words["head"]
    columns = [name, *ENGINES, ratio_head, *((must_head, reach_head) if goals else (limit_head,))]
    rows = ["| " + " | ".join(columns) + " |", "|---|" + "--:|" * (len(ENGINES) + 1) + ("---|---|" if goals else "--:|")]
    for line in lines(report):
        label = line.row.zh if language == "zh" else line.row.en
        unit = f", {line.row.unit}" + (", fp32" if line.weights == "fp32" else "")
        ratio = "–" if line.ratio is None else f"{line.ratio:.2f} ×"
        last = _goals(line, words) if goals else ["–" if line.share is None else f"{line.share:.0%}"]
        rows.append("| " + " | ".join([label + unit, _others(line), *(_cell(line, e) for e in ENGINES[1:]), ratio, *last]) + " |")
    missing = [
        f"- {note.engine} {note.weights}, {ROWS[note.row].en if note.row in ROWS else note.row}: {note.text}" for note in report.notes
    ]
    note = _note(report, words["note"], words["marks"] if goals else "")
    return "\n".join([*rows, "", *([words["missing"], *missing, ""] if missing else []), note])


def _goals(line: Line, words: Mapping[str, Any]) -> list[str]:
    """What had to be reached, and what was to be tried for."""
    reach = line.reach()
    text = "" if reach is None else _goal(reach, words)
    if line.share is not None and not (reach and reach.percent):
        text += ("; " if text else "") + words["limit"].format(line.share)
    return ["; ".join(_goal(check, words) for check in line.must()) or "–", text or "–"]


def _note(report: Report, words: str, marks: str) -> str:
    about = report.about
    reps_of = about["settings"].get("reps_of", "").replace("=", " ").replace(",", ", ")
    limits = about.get("limits") or {"read_gb_s": 0.0, "float_gflops": 0.0, "int8_gops": 0.0}
    return words.format(
        reps=f"{about['settings']['reps']}" + (f" ({reps_of})" if reps_of else ""),
        date=about["date"],
        cores=about["machine"]["cores"],
        cpu=about["machine"]["cpu"],
        threads=about["settings"]["threads"],
        other=max((r.other_cpu for r in report.results), default=0.0),
        read=limits["read_gb_s"],
        float=limits["float_gflops"],
        int8=limits["int8_gops"],
        versions=", ".join(f"{name} {version}" for name, version in about["versions"].items()),
        command=report.command(),
        goals=marks,
    )


def plot(report: Report, path: Path) -> bool:
    """How good each engine's best is beside the best peer's (= 1), a group of bars per row; ``False`` where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [line for line in lines(report) if line.best is not None]
    figure, panels = plt.subplots(
        1, max(1, len(shown)), figsize=(2.1 * max(1, len(shown)), 3.6), layout="constrained", sharey=True, squeeze=False
    )
    for axes, line in zip(panels[0], shown, strict=False):
        assert line.best is not None
        best = line.best[2]
        values = {engine: [v for e, _, v in line.peers if e == engine] for engine in ENGINES[1:]}
        bars = {engine: line.row.ratio(line.row.best(found), best) for engine, found in values.items() if found}
        if line.ours is not None:
            bars = {OCTAVO: line.row.ratio(line.ours, best), **bars}
        drawn = axes.bar(range(len(bars)), list(bars.values()), color=[PLOT_COLOURS[engine] for engine in bars])
        axes.bar_label(drawn, [f"{ratio:.2f}" for ratio in bars.values()], fontsize=7, padding=2)
        axes.set_xticks(range(len(bars)), list(bars), rotation=60, ha="right", fontsize=7)
        axes.axhline(1.0, color="#444444", linewidth=0.8)
        axes.set_title(line.row.name + (" fp32" if line.weights == "fp32" else ""), fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle("times as good as the best peer, each engine with its best weights", x=0.01, ha="left", fontsize=10)
    figure.savefig(path)
    plt.close(figure)
    return True


__all__ = ["markdown", "memory_source", "number", "plot"]
