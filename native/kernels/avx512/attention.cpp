// Paged attention for AVX-512: one vector holds a block's sixteen keys. The bits are those of AVX2.
#include "attention_tile.hpp"
#include "avx512/math.hpp"

namespace octavo {
namespace {

struct Avx512 {
  using Vec = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  static constexpr int kRows = tile_limit(12);
  template <int Rows>
  static constexpr int kScoreBlocks = Rows <= 6 ? 4 : 2;
  template <int Rows>
  static constexpr int kColumnVectors = Rows <= 6 ? 4 : 2;

  OCTAVO_INLINE static Vec zero() { return _mm512_setzero_ps(); }
  OCTAVO_INLINE static Vec broadcast(const float& x) { return _mm512_set1_ps(x); }
  OCTAVO_INLINE static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  OCTAVO_INLINE static Vec load(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  OCTAVO_INLINE static Vec load(const std::int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  OCTAVO_INLINE static void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
  OCTAVO_INLINE static Vec fmadd(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
  OCTAVO_INLINE static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  OCTAVO_INLINE static Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
  OCTAVO_INLINE static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  OCTAVO_INLINE static Vec exp(Vec x) { return exp16(x); }
  OCTAVO_INLINE static __m256 high(Vec x) { return _mm512_extractf32x8_ps(x, 1); }
  OCTAVO_INLINE static float horizontal_max(Vec x) {
    return octavo::horizontal_max(_mm256_max_ps(_mm512_castps512_ps256(x), high(x)));
  }
  OCTAVO_INLINE static __m256 add_halves(__m256 sum, Vec x) {
    return _mm256_add_ps(_mm256_add_ps(sum, _mm512_castps512_ps256(x)), high(x));
  }
};

// Heads that are no whole number of vectors are left to AVX2.
void attend_any(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, float* states,
                float* scratch) {
  if (call.head_dim % Avx512::kLanes != 0) {
    return avx2_attention_kernels().attend(call, tile, kv_head, states, scratch);
  }
  attend<Avx512>(call, tile, kv_head, states, scratch);
}

void attend_any_split(const AttentionCall& call, const AttentionTile& tile, std::int64_t kv_head, std::int64_t split,
                      float* state, float* scratch) {
  if (call.head_dim % Avx512::kLanes != 0) {
    return avx2_attention_kernels().attend_split(call, tile, kv_head, split, state, scratch);
  }
  attend_split<Avx512>(call, tile, kv_head, split, state, scratch);
}

void attend_any_shared(const AttentionCall& call, const SharedTile& tile, std::int64_t kv_head, float* scratch) {
  if (call.head_dim % Avx512::kLanes != 0) return avx2_attention_kernels().attend_shared(call, tile, kv_head, scratch);
  attend_shared<Avx512>(call, tile, kv_head, scratch);
}

}  // namespace

const AttentionKernels& avx512_attention_kernels() {
  static const AttentionKernels kernels{attend_any, attend_any_split, merge_splits, attend_any_shared,
                                        avx2_attention_kernels().write_kv};
  return kernels;
}

}  // namespace octavo
