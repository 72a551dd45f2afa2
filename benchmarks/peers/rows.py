"""The rows of the comparison: what is measured, in which unit, and what Octavo has to reach in each.

A goal is a multiple of what a peer does in the same run, a figure, or a share of what this machine's memory and arithmetic allow.
Machines and their noise come and go; ratios taken side by side stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OCTAVO, LLAMA_CPP, OPENVINO, VLLM, TRANSFORMERS = "Octavo", "llama.cpp", "OpenVINO", "vLLM", "transformers"
ENGINES = (OCTAVO, LLAMA_CPP, OPENVINO, VLLM, TRANSFORMERS)


@dataclass(frozen=True)
class Times:
    """``times`` as good as ``engine`` with ``weights``, or as the best that it has."""

    times: float
    engine: str
    weights: str | None = None


@dataclass(frozen=True)
class Figure:
    """At least (or at most) this much, in the row's unit."""

    value: float


@dataclass(frozen=True)
class Share:
    """This share of the physical limit."""

    share: float


Goal = Times | Figure | Share


@dataclass(frozen=True)
class Row:
    """``warm_up`` is the row of which one unmeasured repetition comes first; ``None``: nothing needs it."""

    name: str
    en: str
    zh: str
    unit: str
    better: Literal["more", "less"]
    must: tuple[Goal, ...]
    reach: Goal
    warm_up: str | None
    fp32: bool = True
    """Whether the same model in fp32 is a row too."""

    def ratio(self, ours: float, theirs: float) -> float:
        """How many times as good ``ours`` is."""
        return ours / theirs if self.better == "more" else theirs / ours

    def best(self, values: list[float]) -> float:
        return max(values) if self.better == "more" else min(values)


_ROWS = (
    Row(
        "requests",
        "64 requests at once, 128 in, 128 out",
        "64 个并发请求，各输入 128、输出 128",
        "tok/s",
        "more",
        (Times(1.75, OPENVINO),),
        Times(2.5, OPENVINO),
        "decode",
    ),
    Row(
        "serving",
        "the same 64 over HTTP",
        "同样 64 个请求，经 HTTP",
        "tok/s",
        "more",
        (Times(4.0, LLAMA_CPP, "Q4_1"),),
        Times(5.0, LLAMA_CPP, "Q4_1"),
        "first_token",
    ),
    Row(
        "decode",
        "decode, one stream, 32 in, 128 out",
        "单路解码，输入 32、输出 128",
        "tok/s",
        "more",
        (Times(1.5, LLAMA_CPP, "Q4_0"), Times(1.9, LLAMA_CPP, "Q4_1")),
        Share(0.8),
        "decode",
    ),
    Row("prefill", "prefill, 512 tokens", "预填充，512 个 token", "tok/s", "more", (Times(1.6, OPENVINO),), Share(0.83), "prefill"),
    Row(
        "samples",
        "8 samples of a 512-token prompt, 64 out each",
        "同一 512-token 提示词采样 8 路，各输出 64",
        "s",
        "less",
        (Times(2.5, OPENVINO),),
        Times(3.9, OPENVINO),
        "decode",
    ),
    Row(
        "beams",
        "beam search, width 4, 512-token prompt, 64 out",
        "束搜索，宽度 4，提示词 512、输出 64",
        "s",
        "less",
        (Figure(1.2),),
        Times(3.1, OPENVINO),
        "decode",
    ),
    Row(
        "prefix",
        "32 requests, 512 shared, 16 own, 32 out, cold",
        "32 个请求，共享前缀 512、各自 16、输出 32，冷启动",
        "s",
        "less",
        (Times(2.0, VLLM),),
        Times(3.0, VLLM),
        "decode",
    ),
    Row(
        "context",
        "decode, 64 streams at context 1,024",
        "64 路解码，上下文 1,024",
        "tok/s",
        "more",
        (Times(3.0, LLAMA_CPP), Times(1.0, OPENVINO)),
        Share(0.8),
        "context",
    ),
    Row(
        "startup",
        "start-up, command to first token",
        "启动：从命令到首个 token",
        "s",
        "less",
        (Figure(1.5),),
        Figure(0.8),
        "startup",
        fp32=False,
    ),
    Row(
        "memory",
        "peak memory, 64 × 256 tokens",
        "峰值内存，64 × 256 个 token",
        "MiB",
        "less",
        (Figure(600),),
        Figure(425),
        None,
        fp32=False,
    ),
)
ROWS = {row.name: row for row in _ROWS}
FP32_MUST = 1.0
"""In fp32: level with the best peer's fp32 …"""
FP32_REACH = Share(0.85)
"""… and this share of the limit."""

MEMORY_SOURCE = {OCTAVO: "serving", LLAMA_CPP: "serving"}
"""Peak memory is read after these rows' repetitions, in processes that have done nothing else (the other engines': ``requests``)."""


def memory_source(engine: str) -> str:
    return MEMORY_SOURCE.get(engine, "requests")
