"""The kernels' benchmark: what a point means, and that every kernel, format and KV type is measured by it."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from benchmarks.kernels import bench, ceilings, run
from benchmarks.kernels.bench import Point, Setting, Shapes

from octavo.weights import dequantize

SMALL = Shapes("small", hidden=256, intermediate=256, heads=4, kv_heads=2, head_dim=64, vocab=512)
QUICK = Setting(threads=1, seconds=0.0)
CEILINGS = {"read_gb_s": 40.0, "float_gflops": 200.0, "int8_gops": 400.0}
AVX2_CEILINGS = {"avx2_float_gflops": 200.0, "avx2_int8_gops": 200.0, "avx2_int4_gops": 400.0}


def test_a_share_is_of_whichever_takes_longest() -> None:
    reading = Point("linear", "x", 1, 1.0, 20e9, 10e9, "int8_gops")
    assert (reading.gb_s, reading.gops, reading.share(CEILINGS)) == (20.0, 10.0, 0.5)
    computing = Point("linear", "x", 512, 1.0, 20e9, 300e9, "int8_gops")
    assert computing.share(CEILINGS) == 0.75
    assert Point("linear", "x", 512, 2.0, 20e9, 300e9, "float_gflops").share(CEILINGS) == 0.75


def test_ceilings_are_those_of_the_kernels_that_run() -> None:
    wide = {"read_gb_s": 40.0, "float_gflops": 400.0, "int8_gops": 1600.0} | AVX2_CEILINGS
    assert ceilings.of_family(wide, "avx512") == wide
    assert ceilings.of_family(wide, "avx2") == {**wide, "float_gflops": 200.0, "int8_gops": 400.0}


@pytest.mark.parametrize("kind", bench.FORMATS, ids=lambda kind: kind.name)
def test_linear_is_measured_in_every_packed_format(kind: bench.TensorType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STREAMED_BYTES", 1 << 18)
    points = list(bench.linear_points(QUICK, SMALL, kind, "down", [1, 3]))
    assert [(p.rows, p.num_ops) for p in points] == [(1, 2.0 * 256 * 256), (3, 6.0 * 256 * 256)]
    assert all(p.seconds > 0 for p in points)
    assert points[0].case == f"{bench.packed_name(kind)} down"


def test_few_rows_get_more_weights_than_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STREAMED_BYTES", 1 << 20)
    copies: list[int] = []
    real = bench.Bench.__init__

    def counting(self: bench.Bench, setting: Setting, build: Any, tensors: dict[str, bench.Tensor], **more: Any) -> None:
        copies.append(len(tensors))
        real(self, setting, build, tensors, **more)

    monkeypatch.setattr(bench.Bench, "__init__", counting)
    points = list(bench.linear_points(QUICK, SMALL, bench.TensorType.F32, "down", [1, 33, 2]))
    assert [p.rows for p in points] == [1, 2, 33]
    assert copies == [4, 1]


def test_formats_cover_all_that_are_packed() -> None:
    """A new packed format without a tensor type here would not be measured."""
    packed = {bench.packed_name(kind) for kind in bench.TensorType}
    assert packed == {bench.packed_name(kind) for kind in bench.FORMATS}


def test_random_weights_are_ordinary_numbers() -> None:
    import numpy as np

    for kind in bench.FORMATS:
        values = dequantize(bench.random_tensor("w", kind, (16, 256), np.random.default_rng(0)))
        size = np.abs(values)
        assert np.isfinite(values).all()
        assert 1e-3 < size.mean() < 1e3, kind
        assert not ((size > 0) & (size < 1e-30)).any()


@pytest.mark.parametrize("dtype", run.KV_DTYPES)
def test_attention_is_measured_with_every_kv_type(dtype: bench.KVDType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "STREAMED_BYTES", 1 << 18)
    decode = bench.attention_point(QUICK, SMALL, dtype, 2, 1, 39)
    assert decode.num_ops == 4 * 2 * 40 * 4 * 64
    element = {"fp32": 4, "fp16": 2, "int8": 1}[dtype]
    assert 1.0 <= decode.num_bytes / (2 * 40 * 2 * 2 * 64 * element) < 1.1, "int8 has scales besides"
    prefill = bench.attention_point(QUICK, SMALL, dtype, 1, 32, 16)
    assert (prefill.rows, prefill.num_ops) == (32, 4 * sum(range(17, 49)) * 4 * 64)
    assert decode.seconds > 0


def test_steps_give_each_sequence_blocks_of_its_own() -> None:
    step = bench.step(3, 2, 31)
    assert step.block_tables.shape == (3, 3)
    assert len(set(step.block_tables.ravel().tolist())) == 9
    assert step.positions.tolist() == [31, 32] * 3
    assert step.slot_mapping.tolist() == [31, 32, 48 + 31, 48 + 32, 96 + 31, 96 + 32]
    assert step.seq_lens.tolist() == [33] * 3


def test_rows_and_choices_are_measured() -> None:
    kernels = [(p.kernel, p.rows) for p in bench.row_points(QUICK, SMALL, [1, 4])]
    assert kernels == [(name, rows) for name in ("rms_norm", "silu_mul", "rope") for rows in (1, 4)]
    choices = list(bench.choice_points(QUICK, SMALL, [2]))
    assert [p.case for p in choices] == list(bench.CHOICES)
    assert all(p.seconds > 0 for p in choices)


def test_one_command_writes_table_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = iter([CEILINGS | AVX2_CEILINGS, CEILINGS | AVX2_CEILINGS | {"read_gb_s": 44.0}])
    monkeypatch.setattr(bench, "STREAMED_BYTES", 1 << 20)
    monkeypatch.setattr(run, "Shapes", lambda: SMALL)
    monkeypatch.setattr(run.machine, "wait_for_quiet", lambda patience_s: True)
    monkeypatch.setattr(run.ceilings, "measure", lambda build_dir, threads: next(measured))
    argv = ["--kernels", "linear,rows", "--formats", "Q4_1", "--rows", "1,2", "--threads", "1", "--seconds", "0", "--out", str(tmp_path)]
    assert run.main(argv) == 0
    record = json.loads((tmp_path / "kernels.json").read_text())
    assert record["ceilings"]["read_gb_s"] == 44.0, "the best of before and after"
    assert len(record["points"]) == 5 * 2 + 3 * 2
    table = (tmp_path / "kernels.md").read_text().splitlines()
    assert sum(line.startswith("| linear | INT4_G32") for line in table) == 10
    assert "--formats Q4_1" in table[-1]


@pytest.mark.skipif(shutil.which("c++") is None or platform.machine() != "x86_64", reason="needs a compiler, and x86 instructions")
@pytest.mark.parametrize("program", ["limits.cpp", "linear.cpp"])
def test_native_programs_fit_the_headers_that_they_include(program: str) -> None:
    root = Path(run.__file__).parents[2]
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-DOCTAVO_HAVE_AVX512", f"-I{root / 'native'}"]
    done = subprocess.run(["c++", *flags, str(root / "benchmarks" / "kernels" / program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("argv", [["--kernels", "convolution"], ["--formats", "Q9"], ["--rows", "0"], ["--rows", "x"]])
def test_what_is_unknown_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.arguments(argv)
    assert argv[0] in capsys.readouterr().err
