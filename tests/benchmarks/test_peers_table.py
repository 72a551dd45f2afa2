"""The table: medians, ratios to the best peer, goals, physical limits; and the READMEs that it goes into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.peers import run, workload
from benchmarks.peers.limits import Limits, ModelSize
from benchmarks.peers.report import Note, Report, Result, fill, lines
from benchmarks.peers.rows import ENGINES, LLAMA_CPP, OCTAVO, OPENVINO, ROWS, TRANSFORMERS, VLLM
from benchmarks.peers.table import WORDS, markdown, plot

SIZE = ModelSize(weight_bytes=100_000_000, layer_weights=106_000_000, head_weights=28_000_000, kv_bytes_per_token=23_040)


def made(*figures: tuple[str, str, str, list[float]]) -> Report:
    report = Report(
        {
            "date": "2026-01-01 00:00:00",
            "machine": {"cpu": "a CPU", "cores": 2},
            "versions": {"Octavo": "0.1.0", "llama.cpp": "b1"},
            "settings": {"threads": 2, "reps": 3},
            "limits": {"read_gb_s": 40.0, "float_gflops": 200.0, "int8_gops": 400.0},
            "sizes": {"Q4_1": vars(SIZE), "fp32": {**vars(SIZE), "weight_bytes": 540_000_000}},
        }
    )
    for row, engine, weights, values in figures:
        report.add(Result(row, engine, weights, [{"value": v, "other_cpu": 0.03} for v in values]))
    return report


def cells(report: Report, label: str) -> list[str]:
    [row] = [line for line in markdown(report).splitlines() if line.startswith(f"| {label}")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_a_row_has_every_engine_the_best_ratio_and_its_goals() -> None:
    report = made(
        ("decode", OCTAVO, "Q4_1", [330.0, 310.0, 320.0]),
        ("decode", OCTAVO, "Q4_0", [350.0]),
        ("decode", LLAMA_CPP, "Q4_1", [160.0, 100.0, 900.0]),
        ("decode", LLAMA_CPP, "Q4_0", [200.0]),
        ("decode", OPENVINO, "int8", [80.0]),
        ("decode", OPENVINO, "fp32", [50.0]),
        ("decode", TRANSFORMERS, "fp32", [20.0]),
    )
    ours, llama, openvino, vllm, transformers, ratio, must, reach = cells(report, "decode, one stream, 32 in, 128 out, tok/s |")
    assert ours == "**320** (Q4_1) · 350 (Q4_0)"
    assert llama == "200 (Q4_0) · 160 (Q4_1)"
    assert (openvino, vllm, transformers) == ("80 (int8) · 50 (fp32)", "–", "20 (fp32)")
    assert ratio == "1.60 ×"
    assert must == "1.5 × llama.cpp Q4_0: 1.60 ✓; 1.9 × llama.cpp Q4_1: 2.00 ✓"
    assert reach == "80% of the limit: 82% ✓"


@pytest.mark.parametrize(("int8", "must"), [(170.0, "1.6 × OpenVINO: 1.70 (int8) ✓"), (120.0, "1.6 × OpenVINO: 1.50 ✗")])
def test_an_engine_s_best_weights_stand_beside_our_best(int8: float, must: str) -> None:
    report = made(
        ("prefill", OCTAVO, "Q4_1", [150.0]),
        ("prefill", OCTAVO, "int8", [int8]),
        ("prefill", OCTAVO, "fp32", [900.0]),
        ("prefill", OPENVINO, "fp32", [100.0]),
    )
    found = cells(report, "prefill, 512 tokens, tok/s |")
    assert found[0] == f"**150** (Q4_1) · {int8:.0f} (int8)"
    assert found[5] == "1.50 ×"
    assert found[6] == must


def test_times_and_memory_are_better_when_they_are_less() -> None:
    report = made(
        ("samples", OCTAVO, "Q4_1", [2.0]),
        ("samples", OPENVINO, "int8", [4.0]),
        ("samples", OPENVINO, "fp32", [3.0]),
        ("memory", OCTAVO, "Q4_1", [500.0]),
        ("memory", LLAMA_CPP, "Q4_1", [950.0]),
        ("startup", OCTAVO, "Q4_1", [2.0]),
    )
    *_, ratio, must, _ = cells(report, "8 samples")
    assert (ratio, must) == ("1.50 ×", "2.5 × OpenVINO: 1.50 ✗")
    *_, ratio, must, reach = cells(report, "peak memory")
    assert (ratio, must, reach) == ("1.90 ×", "600 MiB: 1.20 ✓", "425 MiB: 0.85 ✗")
    *_, ratio, must, _ = cells(report, "start-up")
    assert (ratio, must) == ("–", "1.5 s: 0.75 ✗")


def test_fp32_is_compared_with_fp32() -> None:
    report = made(
        ("prefill", OCTAVO, "fp32", [500.0]),
        ("prefill", OCTAVO, "Q4_1", [900.0]),
        ("prefill", OPENVINO, "int8", [800.0]),
        ("prefill", OPENVINO, "fp32", [400.0]),
        ("prefill", VLLM, "fp32", [250.0]),
    )
    *_, ratio, must, reach = cells(report, "prefill, 512 tokens, tok/s, fp32")
    assert (ratio, must) == ("1.25 ×", "1.0 × the best in fp32: 1.25 ✓")
    assert reach == "85% of the limit: 53% ✗"
    *_, ratio, must, _ = cells(report, "prefill, 512 tokens, tok/s |")
    assert (ratio, must) == ("1.12 ×", "1.6 × OpenVINO: 1.12 ✗")
    assert [line.weights for line in lines(report)] == ["Q4_1", "fp32"]


def test_goals_are_in_the_readers_language() -> None:
    report = made(("prefill", OCTAVO, "fp32", [500.0]), ("prefill", OPENVINO, "fp32", [400.0]), ("decode", OCTAVO, "Q4_1", [330.0]))
    text = markdown(report, "zh")
    assert "1.0 × fp32 最佳者: 1.25 ✓" in text
    assert "极限的 85%: 53% ✗" in text
    assert "极限的 80%: 84% ✓" in text
    assert "limit" not in text
    assert "the best" not in text
    assert "80% of the limit: 84% ✓" in markdown(report)


def test_what_is_missing_is_said() -> None:
    report = made(("decode", OCTAVO, "Q4_1", [300.0]))
    report.note(Note("decode", VLLM, "fp32", "the worker ended"))
    text = markdown(report)
    assert "Not measured:\n- vLLM fp32, decode, one stream, 32 in, 128 out: the worker ended" in text
    assert "at most 3.0% of the CPU" in text
    assert "Octavo 0.1.0, llama.cpp b1" in text
    assert "40 GB/s" in text


def test_the_command_measures_what_was_measured() -> None:
    """However many runs it took, and without where its files lie."""
    report = made(("decode", OCTAVO, "Q4_1", [300.0]), ("startup", OCTAVO, "Q4_1", [1.0]))
    assert report.command() == 'make bench-peers BENCH_ARGS="--rows decode,startup --peers none"'
    everything = [(row, engine, "fp32", [1.0]) for row in ROWS for engine in ENGINES]
    whole = made(*everything)
    assert whole.command() == "make bench-peers"
    whole.about["settings"] |= {"reps": 5, "reps_of": "vLLM=1", "octavo_kv_dtype": "int8"}
    assert whole.command() == 'make bench-peers BENCH_ARGS="--reps 5 --reps-of vLLM=1 --octavo-kv int8"'
    text = markdown(whole)
    assert f"`{whole.command()}`" in text
    assert "Medians of 5 (vLLM 1)" in text
    assert "取 5 (vLLM 1) 次的中位数" in markdown(whole, "zh")


def test_limits_are_what_reading_and_multiplying_take() -> None:
    limits = Limits(40.0, 400.0, SIZE)
    kv = SIZE.kv_bytes_per_token
    assert limits.best("decode") == pytest.approx(40e9 / (100e6 + 96 * kv))
    assert limits.best("prefill") == pytest.approx(400e9 / (2 * 106e6))
    read_s = (100e6 + 64 * 1040 * kv) / 40e9
    assert Limits(40.0, 2000.0, SIZE).best("context") == pytest.approx(64 / read_s)
    slow = Limits(40.0, 10.0, SIZE)
    assert slow.best("context") == pytest.approx(10e9 / (2 * 134e6)), "where arithmetic is what takes longest"
    assert limits.best("startup") is None
    for name, row in ROWS.items():
        best, worse = limits.best(name), Limits(20.0, 200.0, SIZE).best(name)
        assert (best is None) == (name in ("startup", "memory"))
        if best is not None and worse is not None:
            assert row.ratio(best, worse) == pytest.approx(2.0), "half of the machine is half as good"


@pytest.mark.model
def test_the_size_of_a_model_comes_from_its_file(smollm2_path: Path) -> None:
    size = ModelSize.of(smollm2_path)
    assert size.layer_weights == 30 * (960 * 576 + 576 * 576 + 3 * 1536 * 576)
    assert size.head_weights == 49152 * 576
    assert size.kv_bytes_per_token == 30 * 3 * 64 * 2 * 2
    assert 80e6 < size.weight_bytes < smollm2_path.stat().st_size


def test_every_row_has_words_and_a_workload() -> None:
    assert set(WORDS) == {"en", "zh"}
    assert not workload.SMOKE
    for row in ROWS.values():
        assert row.en
        assert row.zh
        assert row.must


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_readme_is_filled_between_its_markers_only(language: str, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- bench -->\nold\n<!-- /bench -->\nafter\n")
    report = made(("decode", OCTAVO, "Q4_1", [100.0]), ("decode", LLAMA_CPP, "Q4_1", [80.0]))
    for _ in range(2):
        fill(readme, markdown(report, language))
    text = readme.read_text()
    assert text.startswith("before\n<!-- bench -->\n|  | Octavo | llama.cpp |")
    assert text.endswith("\n<!-- /bench -->\nafter\n")
    assert text.count("1.25 ×") == 1
    assert "old" not in text
    readme.write_text("no markers")
    with pytest.raises(ValueError, match="no <!-- bench -->"):
        fill(readme, "x")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_readmes_show_the_share_of_the_limit_instead_of_goals(language: str) -> None:
    report = made(("prefill", OCTAVO, "Q4_1", [940.0]), ("prefill", OPENVINO, "int8", [800.0]), ("startup", OCTAVO, "Q4_1", [1.0]))
    text = markdown(report, language, goals=False)
    heads, _, prefill, startup, *_ = text.splitlines()
    assert heads.count("|") == prefill.count("|") == startup.count("|")
    assert heads.endswith(f"| {WORDS[language]['head'][-1]} |")
    assert prefill.endswith("| 1.18 × | 50% |")
    assert startup.endswith("| – | – |")
    assert "✓" not in text
    assert "✗" not in text


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "docs/benchmarks.md"])
def test_the_documents_can_be_filled(name: str, tmp_path: Path) -> None:
    copy = tmp_path / Path(name).name
    copy.write_text((run.ROOT / name).read_text())
    fill(copy, "the table")
    assert "<!-- bench -->\nthe table\n<!-- /bench -->" in copy.read_text()


def test_the_plot_needs_only_a_report(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = made(("decode", OCTAVO, "Q4_1", [100.0]), ("decode", LLAMA_CPP, "Q4_1", [80.0]), ("samples", OPENVINO, "int8", [3.0]))
    figures: dict[str, Any] = {name: plot(report, tmp_path / name) for name in ("plot.svg",)}
    assert figures == {"plot.svg": True}
    assert "<svg" in (tmp_path / "plot.svg").read_text()
