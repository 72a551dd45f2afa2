"""Writes GGUF files of the sizes that people run, filled with random weights: what they decode means nothing, how fast they do is real.

    python -m benchmarks.random_models 1b 7b --tokenizer-of model.gguf --directory models/

The shapes are those of Llama 3.2 1B and Llama 2 7B, the types those of a Q4_K_M file's bulk: Q4_K for every matrix, Q6_K for the
matrix that gives the logits. The tokenizer, and with it the size of the vocabulary, is taken from a file that has one. Blocks are drawn
as bytes, with scales that keep a matrix's outputs about as large as its inputs, and written as they are drawn: memory stays small.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
from rich.progress import Progress

BLOCK = 256
ROWS_AT_ONCE = 1024
Quant = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class Shape:
    """A Llama's hyperparameters. ``tied``: the embedding matrix also gives the logits."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    rope_theta: float
    tied: bool


SHAPES = {
    "1b": Shape(16, 2048, 8192, 32, 8, 500000.0, True),
    "7b": Shape(32, 4096, 11008, 32, 32, 10000.0, False),
}


@dataclass(frozen=True)
class Matrix:
    """A tensor of the file, ``(rows, columns)``; vectors (one row) are ones in fp32."""

    name: str
    rows: int
    columns: int
    type: Quant

    @property
    def row_bytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return self.columns // block * size


def matrices(shape: Shape, vocab_size: int) -> Iterator[Matrix]:
    """Every tensor of a model, in file order."""
    kv = shape.hidden // shape.heads * shape.kv_heads
    yield Matrix("token_embd.weight", vocab_size, shape.hidden, Quant.Q6_K if shape.tied else Quant.Q4_K)
    for i in range(shape.layers):
        layer = f"blk.{i}."
        yield Matrix(layer + "attn_norm.weight", 1, shape.hidden, Quant.F32)
        yield Matrix(layer + "attn_q.weight", shape.hidden, shape.hidden, Quant.Q4_K)
        yield Matrix(layer + "attn_k.weight", kv, shape.hidden, Quant.Q4_K)
        yield Matrix(layer + "attn_v.weight", kv, shape.hidden, Quant.Q4_K)
        yield Matrix(layer + "attn_output.weight", shape.hidden, shape.hidden, Quant.Q4_K)
        yield Matrix(layer + "ffn_norm.weight", 1, shape.hidden, Quant.F32)
        yield Matrix(layer + "ffn_gate.weight", shape.intermediate, shape.hidden, Quant.Q4_K)
        yield Matrix(layer + "ffn_up.weight", shape.intermediate, shape.hidden, Quant.Q4_K)
        yield Matrix(layer + "ffn_down.weight", shape.hidden, shape.intermediate, Quant.Q4_K)
    yield Matrix("output_norm.weight", 1, shape.hidden, Quant.F32)
    if not shape.tied:
        yield Matrix("output.weight", vocab_size, shape.hidden, Quant.Q6_K)


def rows_of(matrix: Matrix, rng: np.random.Generator, count: int) -> npt.NDArray[np.uint8]:
    """``count`` random rows of a matrix as they lie in a file, uint8 ``(count, row_bytes)``.

    Q4_K is ``d * scale * q - dmin * min`` with 6-bit scales and minima: ``dmin = 7.5 d`` centres q. Q6_K is ``d * scale * (q - 32)``
    with 8-bit signed scales.
    """
    if matrix.type is Quant.F32:
        return np.ones((count, matrix.columns), np.float32).view(np.uint8)
    size = gguf.GGML_QUANT_SIZES[matrix.type][1]
    blocks = rng.integers(0, 256, (count, matrix.columns // BLOCK, size), np.uint8)
    deviation = matrix.columns**-0.5
    if matrix.type is Quant.Q4_K:
        d = deviation / (36 * 8.0)
        blocks[..., :4] = np.array([d, 7.5 * d], np.float16).view(np.uint8)
    else:
        blocks[..., -2:] = np.array([deviation / (74 * 18.5)], np.float16).view(np.uint8)
    return blocks.reshape(count, -1)


def copy_tokenizer(source: Path, writer: gguf.GGUFWriter) -> int:
    """Copies every ``tokenizer.*`` field. Returns the size of the vocabulary. Raises ``ValueError`` if there is none."""
    reader = gguf.GGUFReader(source)
    vocab_size = 0
    for name, entry in reader.fields.items():
        if not name.startswith("tokenizer."):
            continue
        value = entry.contents()
        if name == "tokenizer.ggml.tokens":
            vocab_size = len(value)
        kind = entry.types[0]
        writer.add_key_value(name, value, kind, entry.types[-1] if kind is gguf.GGUFValueType.ARRAY else None)
    if not vocab_size:
        raise ValueError(f"{source} has no tokenizer")
    return vocab_size


def write_model(path: Path, name: str, tokenizer_of: Path, seed: int = 0) -> None:
    """Writes the model of a name in ``SHAPES`` to ``path``, through a temporary file beside it."""
    shape, draft = SHAPES[name], path.with_suffix(".part")
    writer = gguf.GGUFWriter(draft, "llama")
    vocab_size = copy_tokenizer(tokenizer_of, writer)
    writer.add_name(f"random-{name}")
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab_size)
    tensors = list(matrices(shape, vocab_size))
    for t in tensors:
        dimensions = (t.columns,) if t.rows == 1 else (t.rows, t.row_bytes)
        dtype = np.dtype(np.float32 if t.type is Quant.F32 else np.uint8)
        writer.add_tensor_info(t.name, dimensions, dtype, t.rows * t.row_bytes, raw_dtype=t.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    rng = np.random.default_rng(seed)
    with Progress(transient=True) as progress:
        bar = progress.add_task(path.name, total=sum(t.rows for t in tensors))
        for t in tensors:
            for begin in range(0, t.rows, ROWS_AT_ONCE):
                count = min(ROWS_AT_ONCE, t.rows - begin)
                rows_of(t, rng, count).tofile(file)
                progress.advance(bar, count)
            writer.write_padding(file, file.tell())
    writer.close()
    os.replace(draft, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=SHAPES)
    parser.add_argument("--tokenizer-of", type=Path, required=True, help="a GGUF file whose tokenizer is copied")
    parser.add_argument("--directory", type=Path, default=Path(), help="where the files go")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        path = arguments.directory / f"random-{name}.Q4_K.gguf"
        if not path.exists():
            write_model(path, name, arguments.tokenizer_of)
        print(path)


if __name__ == "__main__":
    main()
