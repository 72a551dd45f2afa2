// Paged attention for AVX2, and the writing of K and V, which gains nothing from wider vectors.
#include "attention_tile.hpp"

namespace octavo {
namespace {

struct Avx2 {
  using Vec = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  static constexpr int kRows = tile_limit(6);
  template <int Rows>
  static constexpr int kScoreBlocks = Rows == 1   ? 4
                                      : Rows <= 3 ? 2
                                                  : 1;
  template <int Rows>
  static constexpr int kColumnVectors = Rows == 1   ? 8
                                        : Rows <= 3 ? 4
                                                    : 2;

  OCTAVO_INLINE static Vec zero() { return _mm256_setzero_ps(); }
  OCTAVO_INLINE static Vec broadcast(const float& x) { return _mm256_broadcast_ss(&x); }
  OCTAVO_INLINE static Vec load(const float* p) { return load8(p); }
  OCTAVO_INLINE static Vec load(const std::uint16_t* p) { return load8(p); }
  OCTAVO_INLINE static Vec load(const std::int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  OCTAVO_INLINE static void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
  OCTAVO_INLINE static Vec fmadd(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
  OCTAVO_INLINE static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  OCTAVO_INLINE static Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
  OCTAVO_INLINE static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  OCTAVO_INLINE static Vec exp(Vec x) { return exp8(x); }
  OCTAVO_INLINE static float horizontal_max(Vec x) { return octavo::horizontal_max(x); }
  OCTAVO_INLINE static __m256 add_halves(__m256 sum, Vec x) { return _mm256_add_ps(sum, x); }
};

template <class Element>
void store8(Element* out, __m256 x);
template <>
void store8(float* out, __m256 x) {
  _mm256_storeu_ps(out, x);
}
template <>
void store8(std::uint16_t* out, __m256 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

// What is stored of one head's K, as rotated, and V.
template <class Element>
void write_head(const float* k, const float* v, std::int64_t head_dim, Element* part, std::int64_t offset) {
  for (std::int64_t d = 0; d < head_dim; d += 8) {
    alignas(32) Element column[8];
    store8(column, _mm256_loadu_ps(k + d));
    for (int i = 0; i < 8; ++i) part[(d + i) * kBlockSize + offset] = column[i];
    store8(part + (kBlockSize + offset) * head_dim + d, _mm256_loadu_ps(v + d));
  }
}

// x = scale · q; returns the scale. The largest magnitude is found on bit patterns, where NaN > infinity > every finite
// number.
float quantise(const float* x, std::int64_t head_dim, std::int8_t* q) {
  __m256i largest = _mm256_setzero_si256();
  for (std::int64_t d = 0; d < head_dim; d += 8) {
    const __m256i bits = _mm256_castps_si256(_mm256_loadu_ps(x + d));
    largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff)));
  }
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  const float most = _mm_cvtss_f32(_mm_castsi128_ps(m));
  if (!(most >= kLeastMagnitude && most < kInfinity)) {
    __builtin_memset(q, 0, static_cast<std::size_t>(head_dim));
    return most < kLeastMagnitude ? 0.0f : __builtin_nanf("");
  }
  const float scale = most / 127.0f;
  for (std::int64_t d = 0; d < head_dim; d += 8) {
    const __m256i n = _mm256_cvtps_epi32(_mm256_div_ps(_mm256_loadu_ps(x + d), _mm256_set1_ps(scale)));
    const __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(n), _mm256_extracti128_si256(n, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(q + d), _mm_packs_epi16(pairs, pairs));
  }
  return scale;
}

template <>
void write_head(const float* k, const float* v, std::int64_t head_dim, std::int8_t* part, std::int64_t offset) {
  float* scales = reinterpret_cast<float*>(part + 2 * kBlockSize * head_dim);
  std::int8_t column[kMaxHeadDim];
  scales[offset] = quantise(k, head_dim, column);
  for (std::int64_t d = 0; d < head_dim; ++d) part[d * kBlockSize + offset] = column[d];
  scales[kBlockSize + offset] = quantise(v, head_dim, part + (kBlockSize + offset) * head_dim);
}

template <class Element>
void write_heads(const float* k, const float* v, std::int64_t num_kv_heads, std::int64_t head_dim, KvType type,
                 const RopeTable* rope, std::int64_t position, std::uint8_t* slot, std::int64_t offset) {
  for (std::int64_t head = 0; head < num_kv_heads;
       ++head, k += head_dim, v += head_dim, slot += kv_head_bytes(type, head_dim)) {
    alignas(32) float rotated[kMaxHeadDim];
    const float* source = k;
    if (rope != nullptr) {
      rotate_head(k, rope->row(position), rope->rotary_dim, rope->style, head_dim, rotated);
      source = rotated;
    }
    write_head(source, v, head_dim, reinterpret_cast<Element*>(slot), offset);
  }
}

void write_kv(const float* k, const float* v, std::int64_t num_kv_heads, std::int64_t head_dim, KvType type,
              const RopeTable* rope, std::int64_t position, std::uint8_t* slot, std::int64_t offset) {
  const auto write = type == KvType::F32   ? write_heads<float>
                     : type == KvType::F16 ? write_heads<std::uint16_t>
                                           : write_heads<std::int8_t>;
  write(k, v, num_kv_heads, head_dim, type, rope, position, slot, offset);
}

constexpr AttentionKernels kKernels{attend<Avx2>, attend_split<Avx2>, merge_splits, attend_shared<Avx2>, write_kv};

}  // namespace

const AttentionKernels& avx2_attention_kernels() { return kKernels; }

}  // namespace octavo
