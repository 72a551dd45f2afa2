"""What is said of a larger model: streams as spans, their share of what was read beside them, prefill and memory."""

from __future__ import annotations

from benchmarks.large_models import Figures, Stream, row, span
from benchmarks.peers.limits import ModelSize

SIZE = ModelSize(weight_bytes=600_000_000, layer_weights=1_000_000_000, head_weights=10, kv_bytes_per_token=10)


def test_spans() -> None:
    assert span([118.4, 76.2, 80]) == "76.2–118"
    assert span([80.01, 80.02]) == "80"


def test_a_share_is_of_what_was_read_beside_it() -> None:
    figures = Figures([Stream(1 / 80, 53), Stream(1 / 118, 87), Stream(1 / 79, 53)], prefill_s=1.0, beside_mib=130.4)
    cells = [cell.strip() for cell in row("1b", "first", SIZE, figures, 2048).strip("|").split("|")]
    assert cells == ["1b", "first", "79–118", "47–71 of 53–87 GB/s", "89%", "512", "50%", "130 MiB"]


def test_a_restless_machine_is_said_to_be_one() -> None:
    assert "no two readings agreed" in row("1b", "second", SIZE, Figures([], 1.0, 130), 2048)
