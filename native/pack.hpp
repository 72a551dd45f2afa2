// Packing: from the rows of a GGUF tensor to the panels that kernels read (packed.hpp), and back for one row.
// Portable C++; a matrix may be packed by several threads, each taking a range of panels.
#pragma once
#include <cstddef>
#include <cstdint>

#include "packed.hpp"
#include "source.hpp"

namespace octavo {

// The format that holds weights of `source`, every one exactly.
WeightFormat packed_format(SourceType source);

const char* name(WeightFormat format);
double bits_per_weight(WeightFormat format);  // scales included, padding not

// Bytes of one row of k weights. Throws std::invalid_argument if k is not a positive whole number of blocks.
std::size_t source_row_bytes(SourceType source, std::int64_t k);

// Bytes of a packed (n, k) matrix. Throws std::invalid_argument on n or k below 1, or k % k_unit(format) != 0.
std::size_t packed_bytes(WeightFormat format, std::int64_t n, std::int64_t k);

// Packs columns of panels panel_begin … panel_end-1 of the (n, k) matrix at `src`. `target` is packed_format(source),
// or F32 for any source: its weights dequantised. `dst` is the start of the whole packed matrix; only the bytes of
// those panels are written. Throws std::invalid_argument if the shape, the target or the range does not fit, or if
// a scale d of Q4_0 or Q5_0 is such that the minimum -8 d or -16 d is not a finite half.
void pack(SourceType source, WeightFormat target, const std::uint8_t* src, std::int64_t n, std::int64_t k,
          std::int64_t panel_begin, std::int64_t panel_end, std::uint8_t* dst);

// The k weights of output column `row` (an embedding's row), in float: scale * q + minimum, each operation rounded
// once.
void dequantize_row(const PackedMatrix& w, std::int64_t row, float* out);

}  // namespace octavo
