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

template <class Element>
void write_heads(const float* k, const float* v, std::int64_t num_kv_heads, std::int64_t head_dim,
                 const RopeTable* rope, std::int64_t position, Element* part, std::int64_t offset) {
  for (std::int64_t head = 0; head < num_kv_heads;
       ++head, k += head_dim, v += head_dim, part += 2 * kBlockSize * head_dim) {
    alignas(32) float rotated[1024];
    const float* source = k;
    if (rope != nullptr) {
      rotate_head(k, rope->row(position), rope->rotary_dim, rope->style, head_dim, rotated);
      source = rotated;
    }
    for (std::int64_t d = 0; d < head_dim; d += 8) {
      alignas(32) Element column[8];
      store8(column, _mm256_loadu_ps(source + d));
      for (int i = 0; i < 8; ++i) part[(d + i) * kBlockSize + offset] = column[i];
      store8(part + (kBlockSize + offset) * head_dim + d, _mm256_loadu_ps(v + d));
    }
  }
}

void write_kv(const float* k, const float* v, std::int64_t num_kv_heads, std::int64_t head_dim, KvType type,
              const RopeTable* rope, std::int64_t position, std::uint8_t* slot, std::int64_t offset) {
  if (type == KvType::F16) {
    write_heads(k, v, num_kv_heads, head_dim, rope, position, reinterpret_cast<std::uint16_t*>(slot), offset);
  } else {
    write_heads(k, v, num_kv_heads, head_dim, rope, position, reinterpret_cast<float*>(slot), offset);
  }
}

constexpr AttentionKernels kKernels{attend<Avx2>, attend_split<Avx2>, merge_splits, write_kv};

}  // namespace

const AttentionKernels& avx2_attention_kernels() { return kKernels; }

}  // namespace octavo
