"""The report: one JSON with every repetition, a Markdown table of the medians, and a plot where matplotlib is installed."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

OCTAVO, LLAMA_CPP = "Octavo", "llama.cpp"


@dataclass
class Result:
    """One workload on one engine. ``runs`` are the repetitions that count; ``disturbed`` those thrown away for busy neighbours."""

    workload: str
    engine: str
    runs: list[dict[str, float]]
    disturbed: list[dict[str, float]] = field(default_factory=list)

    @property
    def tok_s(self) -> float:
        return median(run["tok_s"] for run in self.runs)

    @property
    def other_cpu(self) -> float:
        return max(run["other_cpu"] for run in self.runs)


@dataclass
class Report:
    about: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    start_s: dict[str, float] = field(default_factory=dict)
    peak_memory_mib: dict[str, float] = field(default_factory=dict)

    def rate(self, workload: str, engine: str) -> float | None:
        return next((r.tok_s for r in self.results if (r.workload, r.engine) == (workload, engine)), None)

    def as_json(self) -> dict[str, Any]:
        results = [{**asdict(r), "median_tok_s": r.tok_s, "max_other_cpu": r.other_cpu} for r in self.results]
        return {**self.about, "results": results, "start_s": self.start_s, "peak_memory_mib": self.peak_memory_mib}

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n")


WORKLOADS = {
    "decode": {
        "en": "one stream, 32 tokens in, 128 out: decode, tok/s",
        "zh": "单路生成，输入 32、输出 128 个 token：解码速度，tok/s",
    },
    "prefill": {
        "en": "a prompt of 512 tokens: prefill, tok/s",
        "zh": "512 个 token 的提示词：预填充速度，tok/s",
    },
    "serving": {
        "en": "64 requests at once over HTTP, 128 in, 128 out: output tok/s",
        "zh": "64 个并发 HTTP 请求，各输入 128、输出 128：输出 tok/s",
    },
    "offline": {
        "en": "the same 64 in one Python process: output tok/s",
        "zh": "同样 64 个请求，在 Python 进程内：输出 tok/s",
    },
}
WORDS = {
    "en": {
        "memory": "peak memory of the server under that load, MiB",
        "start": "server start until it answers, s",
        "slots": ", {} server slots",
        "note": (
            "Medians of {reps}, alternating, on {cores} cores of {cpu}, {threads} threads each, {model}, greedy; other processes took "
            "at most {other:.1%} of the CPU. llama.cpp is {llama} (from llama-cpp-python {sdist}, native build{slots}); "
            "Octavo is {octavo}. `make bench-peers` measures it again."
        ),
    },
    "zh": {
        "memory": "该负载下服务器的峰值内存，MiB",
        "start": "服务器从启动到可用，秒",
        "slots": "，服务器 {} 个槽位",
        "note": (
            "{reps} 次交替测量的中位数；{cpu}，{cores} 核，各用 {threads} 个线程；模型 {model}，贪心解码；"
            "其他进程占用 CPU 不超过 {other:.1%}。"
            "llama.cpp 为 {llama}（取自 llama-cpp-python {sdist}，本机原生编译{slots}）；Octavo 为 {octavo}。"
            "用 `make bench-peers` 可重新测量。"
        ),
    },
}


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(report: Report, language: str = "en") -> str:
    """The table and the sentence below it that says what was measured, on what."""
    words = WORDS[language]
    rows = [f"| | {OCTAVO} | {LLAMA_CPP} | |", "|---|--:|--:|--:|"]

    def row(label: str, ours: float | None, theirs: float | None, better: str) -> None:
        if ours is None and theirs is None:
            return
        ratio = ""
        if ours and theirs:
            ratio = f"{ours / theirs if better == 'more' else theirs / ours:.2f} ×"
        rows.append(f"| {label} | {number(ours)} | {number(theirs)} | {ratio} |")

    for name, labels in WORKLOADS.items():
        row(labels[language], report.rate(name, OCTAVO), report.rate(name, LLAMA_CPP), "more")
    row(words["memory"], report.peak_memory_mib.get(OCTAVO), report.peak_memory_mib.get(LLAMA_CPP), "less")
    row(words["start"], report.start_s.get(OCTAVO), report.start_s.get(LLAMA_CPP), "less")
    about = report.about
    note = words["note"].format(
        reps=about["settings"]["reps"],
        cores=about["machine"]["cores"],
        cpu=about["machine"]["cpu"],
        threads=about["settings"]["threads"],
        model=about["settings"]["model"],
        other=max((r.other_cpu for r in report.results), default=0.0),
        llama=about["versions"]["llama.cpp"],
        sdist=about["versions"]["llama-cpp-python"],
        slots=words["slots"].format(about["settings"]["llama_parallel"]) if "llama_parallel" in about["settings"] else "",
        octavo=about["versions"]["octavo"],
    )
    return "\n".join([*rows, "", note])


def fill(readme: Path, text: str) -> None:
    """Puts ``text`` between the ``bench`` markers of a README. Raises ``ValueError`` if it has none."""
    old = readme.read_text()
    new, found = re.subn(r"(<!-- bench -->\n).*?(<!-- /bench -->)", lambda m: f"{m[1]}{text}\n{m[2]}", old, flags=re.DOTALL)
    if not found:
        raise ValueError(f"{readme} has no <!-- bench --> … <!-- /bench --> to fill")
    readme.write_text(new)


def plot(report: Report, path: Path) -> bool:
    """Octavo's rate as a multiple of llama.cpp's, one bar per workload; ``False`` where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names, ratios = [], []
    for name, labels in WORKLOADS.items():
        ours, theirs = report.rate(name, OCTAVO), report.rate(name, LLAMA_CPP)
        if ours and theirs:
            names.append(labels["en"].replace(": ", "\n", 1))
            ratios.append(ours / theirs)
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.8 * len(names)), layout="constrained")
    bars = axes.barh(names, ratios, color="#35637c", height=0.55)
    axes.bar_label(bars, [f"{ratio:.2f} ×" for ratio in ratios], padding=4)
    axes.axvline(1.0, color="#b0562f", linewidth=1.5)
    axes.set_title("Octavo beside llama.cpp (= 1)", loc="left")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.savefig(path)
    plt.close(figure)
    return True
