// Packing: from the rows of a GGUF tensor to the panels that kernels read (packed.hpp), and back for one row.
// Portable C++; a matrix may be packed by several threads, each taking a range of panels.
#pragma once
#include <cstddef>
#include <cstdint>

#include "packed.hpp"

namespace octavo {

// Row-major (n, k) blocks as GGUF stores them; the layouts are those of ggml's ggml-common.h, little-endian.
enum class SourceType : std::uint8_t {
  F32,
  F16,
  BF16,
  Q8_0,  // 32 weights: half d, 32 signed bytes q; weight = d * q                                          (34 bytes)
  Q4_0,  // 32 weights: half d, 16 bytes; byte i holds q of weight i low, of i + 16 high; weight = d * (q - 8)  (18)
  Q4_1,  // 32 weights: half d, half m, 16 bytes as in Q4_0; weight = d * q + m                                (20)
};

// The format that holds every weight of `source` exactly, at the least size.
WeightFormat lossless_format(SourceType source);

// Bytes of one row of k weights. Throws std::invalid_argument if k is not a positive whole number of blocks.
std::size_t source_row_bytes(SourceType source, std::int64_t k);

// Bytes of a packed (n, k) matrix. Throws std::invalid_argument on n or k below 1, or k % 32 != 0 for integer formats.
std::size_t packed_bytes(WeightFormat format, std::int64_t n, std::int64_t k);

// Packs columns of panels panel_begin … panel_end-1 of the (n, k) matrix at `src`. `target` is lossless_format(source),
// or F32 for any source: its weights dequantised. `dst` is the start of the whole packed matrix; only the bytes of
// those panels are written. Throws std::invalid_argument if the shape, the target or the range does not fit, or if
// a Q4_0 scale d is such that the minimum -8 d is not a finite half.
void pack(SourceType source, WeightFormat target, const std::uint8_t* src, std::int64_t n, std::int64_t k,
          std::int64_t panel_begin, std::int64_t panel_end, std::uint8_t* dst);

// The k weights of output column `row` (an embedding's row), in float: scale * q + minimum, each operation rounded
// once.
void dequantize_row(const PackedMatrix& w, std::int64_t row, float* out);

}  // namespace octavo
