// What the kernels share: vectors, 16-bit values widened in registers, and borrowed tensors.
//
// GNU vector extensions (GCC, clang) let the compiler map Vec to AVX-512, AVX, NEON or SSE. Only
// torch's stable C ABI is used, whose headers compile in seconds.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <omp.h>
#ifdef __AVX__
#include <immintrin.h>
#endif

namespace {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::stable::Tensor;

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

constexpr int kStep = 2 * kLanes;  // values advance by two vectors: one load of 16-bit values
constexpr int64_t kLineBytes = 64;

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef float LooseVec __attribute__((vector_size(kLanes * 4), aligned(1), may_alias));
typedef uint32_t LooseBits __attribute__((vector_size(kLanes * 4), aligned(1), may_alias));

#define UNROLL _Pragma("GCC unroll 8")
// Keeps a loaded value in a register: GCC would load it again at each use, 30 % slower.
#if defined(__x86_64__)
#define IN_REGISTER(v) asm volatile("" : "+v"(v))
#elif defined(__aarch64__)
#define IN_REGISTER(v) asm volatile("" : "+w"(v))
#else
#define IN_REGISTER(v)
#endif

// Vector `half` (0 or 1) of the kStep values at w. Two bfloat16 are one 32-bit word, so half 0 is
// the even ones and half 1 the odd ones, by a shift and a mask.
inline Vec widen(const float* w, int half) { return *(const LooseVec*)(w + half * kLanes); }

inline Vec widen(const BFloat16* w, int half) {
  const Bits pairs = *(const LooseBits*)w;
  return half ? (Vec)(pairs & 0xffff0000u) : (Vec)(pairs << 16);
}

inline Vec widen(const Half* w, int half) {
  w += half * kLanes;
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)w));
#elif defined(__AVX__) && defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)w));
#else
  Vec wide;
  for (int i = 0; i < kLanes; ++i) wide[i] = w[i];
  return wide;
#endif
}

// Values of 8 bits come in their own order.
inline Vec widen(const int8_t* w, int half) {
  w += half * kLanes;
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)w)));
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)w)));
#else
  Vec wide;
  for (int i = 0; i < kLanes; ++i) wide[i] = w[i];
  return wide;
#endif
}

// Explicit, because GCC tuned for AMD splits some of them into two steps, which round differently.
inline Vec multiply_add(Vec a, Vec b, Vec sum) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX__) && defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
  return a * b + sum;
#endif
}

// The first kStep of `count` float32 values, or all and zeros, as two vectors that are ordered as
// widen() orders values of type T.
template <class T>
inline void load_step(const float* values, int64_t stride, int64_t count, float* out0,
                      float* out1) {
  float step[kStep] = {};
  if (stride == 1 && count >= kStep)
    std::memcpy(step, values, sizeof step);
  else
    for (int64_t i = 0; i < kStep && i < count; ++i) step[i] = values[i * stride];
  constexpr bool pairs = std::is_same_v<T, BFloat16>;
  for (int i = 0; i < kLanes; ++i) {
    out0[i] = step[pairs ? 2 * i : i];
    out1[i] = step[pairs ? 2 * i + 1 : i + kLanes];
  }
}

// Two vectors of that order as kStep values one after the other.
template <class T>
inline void store_step(Vec half0, Vec half1, float* values) {
  constexpr bool pairs = std::is_same_v<T, BFloat16>;
  for (int i = 0; i < kLanes; ++i) {
    values[pairs ? 2 * i : i] = half0[i];
    values[pairs ? 2 * i + 1 : i + kLanes] = half1[i];
  }
}

template <int... I>
inline Vec pick(Vec a, Vec b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, Bits{I...});
#endif
}

template <int D, int... I>
inline Vec join(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return pick<(I & D ? kLanes + I - D : I)...>(a, b) + pick<(I & D ? kLanes + I : I + D)...>(a, b);
}

// Adds up the lanes of kLanes vectors at once, as a tree: lane i of the result is the sum of v[i].
template <int D = 1>
inline Vec sum_lanes(const Vec* v) {
  if constexpr (D == kLanes)
    return *v;
  else
    return join<D>(sum_lanes<2 * D>(v), sum_lanes<2 * D>(v + D),
                   std::make_integer_sequence<int, kLanes>{});
}

// Vector-aligned memory of this thread, kept for its next call; `Use` names what is alive together.
template <int Use, class T>
T* scratch(int64_t count) {
  struct alignas(kLineBytes) Line {
    char bytes[kLineBytes];
  };
  static thread_local std::vector<Line> memory;
  const size_t lines = count * sizeof(T) / sizeof(Line) + 1;
  if (memory.size() < lines) memory.resize(lines);
  return reinterpret_cast<T*>(memory.data());
}

struct View {  // a borrowed tensor
  void* data;
  int64_t dims, *sizes, *strides;
  int32_t dtype;

  explicit View(AtenTensorHandle tensor) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(tensor, &data));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dims));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  }
};

// Row m of a tensor seen as [M, K].
template <class T = float>
inline const T* row_of(const View& x, int64_t m) {
  const T* p = static_cast<const T*>(x.data);
  for (int64_t d = x.dims - 2; d >= 0; m /= x.sizes[d--]) p += m % x.sizes[d] * x.strides[d];
  return p;
}

inline AtenTensorHandle empty_of(const std::vector<int64_t>& sizes, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size() - 1; d > 0; --d)
    strides[d - 1] = strides[d] * std::max<int64_t>(sizes[d], 1);
  AtenTensorHandle result;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), dtype,
                                                  aoti_torch_device_type_cpu(), 0, &result));
  return result;
}

inline AtenTensorHandle empty_float32(const std::vector<int64_t>& sizes) {
  return empty_of(sizes, aoti_torch_dtype_float32());
}

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("nxdi_cpu::") + message);
}

// Calls f with a null pointer of the tensor's C++ type; `message` says which types there are.
template <class F>
auto with_type(const View& tensor, const char* message, F f) {
  if (tensor.dtype == aoti_torch_dtype_bfloat16()) return f((BFloat16*)nullptr);
  if (tensor.dtype == aoti_torch_dtype_float16()) return f((Half*)nullptr);
  require(tensor.dtype == aoti_torch_dtype_float32(), message);
  return f((float*)nullptr);
}

}  // namespace
