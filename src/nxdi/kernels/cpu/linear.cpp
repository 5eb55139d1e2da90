// nxdi_cpu::linear: y = x @ weight.T + bias for few rows of x, where reading the weight is the whole cost.
//
//   x [..., K] float32, any strides;  weight [N, K] float32 | bfloat16 | float16, rows contiguous, any alignment
//   (it is usually a memory-mapped file);  bias [N] of those types, or none;  result [..., N] float32.
//
// How it streams. Each thread owns a contiguous range of weight rows and reads every weight once, in its stored type,
// widening it in registers: 16-bit weights cost half the memory traffic and no second copy. A tile of R weight rows by
// C rows of x accumulates in R*C vector registers; the lanes of one register hold partial sums over k, added at the end.
// x is packed first, so that a tile reads it as one sequential stream and a slice of it stays in the L1 cache. While a
// strip of weight rows is multiplied, the next one is prefetched to L2: hardware prefetchers stop at page ends and lag
// behind when there is arithmetic to do. With more than C rows of x, the strip is reused from L2 for each group of C.
//
// Each output is summed in one order, whatever the other rows are: a row gives the same bits alone and in a batch.
//
// Portable: GNU vector extensions (GCC, clang), so the compiler maps `Vec` to AVX-512, AVX, NEON or SSE. It uses only
// torch's stable C ABI, which also keeps the build to a few seconds.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <utility>
#include <vector>

#include <omp.h>
#ifdef __F16C__
#include <immintrin.h>
#endif

namespace {

using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxGroup = 8;  // 32 vector registers
constexpr int rows_per_tile(int group) { return group <= 2 ? 8 : group <= 6 ? 4 : 2; }
#else
constexpr int kMaxGroup = 6;  // 16 vector registers
constexpr int rows_per_tile(int group) { return group == 1 ? 8 : group == 2 ? 4 : 2; }
#endif
constexpr int kStep = 2 * kLanes;       // k is walked in pairs of vectors, which suits 16-bit weights
constexpr int kMaxStrip = 48;           // weight rows kept in L2 while all groups of x pass over them
constexpr int64_t kSliceBytes = 16384;  // packed x that stays in L1
constexpr int64_t kMaxRows = 128;       // rows of x packed at a time, which bounds the scratch memory

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef float LooseVec __attribute__((vector_size(kLanes * 4), aligned(1), may_alias));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef uint32_t LooseBits __attribute__((vector_size(kLanes * 4), aligned(1), may_alias));

// Keeps a value in a register: without it GCC folds the load into every use, and the loads become the limit.
#if defined(__x86_64__)
#define NXDI_IN_REGISTER(v) asm volatile("" : "+v"(v))
#elif defined(__aarch64__)
#define NXDI_IN_REGISTER(v) asm volatile("" : "+w"(v))
#else
#define NXDI_IN_REGISTER(v)
#endif

// Vector `half` (0 or 1) of the kStep weights at `w`, as float32. One bfloat16 pair is one 32-bit word, so half 0 takes
// the even k and half 1 the odd: a shift and a mask instead of a cross-lane widening. pack() orders x to match.
inline Vec widen(const float* w, int half) { return *reinterpret_cast<const LooseVec*>(w + half * kLanes); }

inline Vec widen(const BFloat16* w, int half) {
  const Bits pairs = *reinterpret_cast<const LooseBits*>(w);
  return half ? (Vec)(pairs & 0xffff0000u) : (Vec)(pairs << 16);
}

inline Vec widen(const Half* w, int half) {
  w += half * kLanes;
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)w));
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)w));
#else
  Vec wide;
  for (int i = 0; i < kLanes; ++i) wide[i] = w[i];
  return wide;
#endif
}

// sums[c][r] += w[r] . x[c] over `steps` steps of k, for R weight rows and C rows of packed x.
template <class W, int R, int C>
inline void multiply_tile(const W* w, int64_t stride, const float* x, int64_t steps, Vec* sums, const char* next) {
  Vec acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) acc[r][c] = sums[c * kMaxStrip + r];
  for (int64_t s = 0; s < steps; ++s) {
    if (next)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        for (int line = 0; line < int(kStep * sizeof(W)); line += 64)
          __builtin_prefetch(next + (r * stride + s * kStep) * sizeof(W) + line, 0, 2);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, x += C * kLanes) {
      Vec wide[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        wide[r] = widen(w + r * stride + s * kStep, half);
        if (C > 1) NXDI_IN_REGISTER(wide[r]);
      }
#pragma GCC unroll 8
      for (int c = 0; c < C; ++c) {
        Vec value = *reinterpret_cast<const Vec*>(x + c * kLanes);
        NXDI_IN_REGISTER(value);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r][c] += wide[r] * value;
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) sums[c * kMaxStrip + r] = acc[r][c];
}

template <class W, int C>
void multiply_strip(const W* w, int64_t stride, int rows, const float* x, int64_t steps, Vec* sums, const char* next) {
  constexpr int R = rows_per_tile(C);
  const int64_t row_bytes = stride * sizeof(W);
  int r = 0;
  for (; r + R <= rows; r += R)
    multiply_tile<W, R, C>(w + r * stride, stride, x, steps, sums + r, next ? next + r * row_bytes : nullptr);
  for (; r < rows; ++r) multiply_tile<W, 1, C>(w + r * stride, stride, x, steps, sums + r, nullptr);
}

template <class W>
using MultiplyStrip = void (*)(const W*, int64_t, int, const float*, int64_t, Vec*, const char*);

template <class W, size_t... I>
MultiplyStrip<W> choose_strip(int group, std::index_sequence<I...>) {
  static constexpr MultiplyStrip<W> table[] = {multiply_strip<W, I + 1>...};
  return table[group - 1];
}

template <int... I>
inline Vec pick(Vec a, Vec b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, Bits{I...});
#endif
}

// Sums the lanes of kLanes vectors at once, by a tree of pairwise joins: lane i of the result is the sum of v[i].
template <int D, int... I>
inline Vec join(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return pick<(I & D ? kLanes + I - D : I)...>(a, b) + pick<(I & D ? kLanes + I : I + D)...>(a, b);
}

template <int D = 1>
inline Vec sum_lanes(const Vec* v) {
  if constexpr (D == kLanes)
    return v[0];
  else
    return join<D>(sum_lanes<2 * D>(v), sum_lanes<2 * D>(v + D), std::make_integer_sequence<int, kLanes>{});
}

// Vector-aligned memory of the calling thread, kept for its next call. `Use` tells apart what is alive together.
template <int Use, class T>
T* scratch(int64_t count) {
  struct alignas(64) Line {
    char bytes[64];
  };
  static thread_local std::vector<Line> memory;
  const size_t lines = (count * sizeof(T) + 63) / 64;
  if (memory.size() < lines) memory.resize(lines);
  return reinterpret_cast<T*>(memory.data());
}

struct Rows {  // x as [M, K], whatever its shape and strides
  const float* data;
  int64_t dims;
  const int64_t *sizes, *strides;

  const float* row(int64_t m) const {
    const float* p = data;
    for (int64_t d = dims - 2; d >= 0; m /= sizes[d--]) p += m % sizes[d] * strides[d];
    return p;
  }
};

template <class W>
struct Product {  // y[m, n] = x[m] . w[n] + bias[n] for `num_rows` rows of packed x
  const W* w;
  int64_t w_stride, N, K;
  const float* bias;
  float* y;
  int64_t num_rows, num_groups;
  int group;
  float* packed;  // [num_groups][steps][2][group][kLanes], zeros beyond the last row and the last k

  int64_t steps() const { return (K + kStep - 1) / kStep; }
  int64_t group_size() const { return steps() * kStep * group; }

  void pack(const Rows& x, int64_t first_row, int64_t begin, int64_t end) const {
    for (int64_t m = begin * group; m < end * group; ++m) {
      float* out = packed + m / group * group_size() + m % group * kLanes;
      const float* row = m < num_rows ? x.row(first_row + m) : nullptr;
      const int64_t stride = x.strides[x.dims - 1];
      for (int64_t k = 0; k < steps() * kStep; k += kStep, out += kStep * group) {
        float step[kStep] = {};
        const int64_t count = row ? std::min<int64_t>(kStep, K - k) : 0;
        for (int64_t i = 0; i < count; ++i) step[i] = row[(k + i) * stride];
        for (int i = 0; i < kLanes; ++i) {
          const bool paired = std::is_same_v<W, BFloat16>;
          out[i] = step[paired ? 2 * i : i];
          out[group * kLanes + i] = step[paired ? 2 * i + 1 : kLanes + i];
        }
      }
    }
  }

  void multiply(int64_t begin, int64_t end) const {  // weight rows begin..end
    const auto multiply_strip = choose_strip<W>(group, std::make_index_sequence<kMaxGroup>{});
    const int max_strip = num_groups == 1 ? 16 : kMaxStrip;
    const int64_t whole_steps = K / kStep, tail = K % kStep;
    const int64_t slices = 1 + whole_steps * kStep * group * 4 / kSliceBytes;
    const int64_t slice = (whole_steps + slices - 1) / slices;
    Vec* sums = scratch<1, Vec>(num_groups * group * kMaxStrip);
    for (int64_t n = begin; n < end; n += max_strip) {
      const int strip = std::min<int64_t>(max_strip, end - n);
      std::fill_n(sums, num_groups * group * kMaxStrip, Vec{});
      for (int64_t s = 0; s < whole_steps; s += slice) {
        const W* here = w + n * w_stride + s * kStep;
        const W* next = s + slice < whole_steps ? here + slice * kStep : n + strip < end ? w + (n + strip) * w_stride : nullptr;
        for (int64_t g = 0; g < num_groups; ++g)
          multiply_strip(here, w_stride, strip, packed + g * group_size() + s * kStep * group,
                         std::min(slice, whole_steps - s), sums + g * group * kMaxStrip, g ? nullptr : (const char*)next);
      }
      if (tail) {
        W edge[kMaxStrip * kStep] = {};
        for (int r = 0; r < strip; ++r)
          std::copy_n(w + (n + r) * w_stride + whole_steps * kStep, tail, edge + r * kStep);
        for (int64_t g = 0; g < num_groups; ++g)
          multiply_strip(edge, kStep, strip, packed + g * group_size() + whole_steps * kStep * group, 1,
                         sums + g * group * kMaxStrip, nullptr);
      }
      for (int64_t m = 0; m < num_rows; ++m)
        for (int r = 0; r < strip; r += kLanes) {
          Vec total = sum_lanes(sums + m * kMaxStrip + r);
          if (bias) total += *reinterpret_cast<const LooseVec*>(bias + n + r);
          std::memcpy(y + m * N + n + r, &total, std::min(kLanes, strip - r) * sizeof(float));
        }
    }
  }

  void run(const Rows& x, int64_t first_row) {
    num_groups = (num_rows + kMaxGroup - 1) / kMaxGroup;
    group = (num_rows + num_groups - 1) / num_groups;
    packed = scratch<0, float>(num_groups * group_size());
    const bool pack_alone = num_rows <= 16;  // cheaper than a second barrier
    if (pack_alone) pack(x, first_row, 0, num_groups);
    const int64_t units = (N + kLanes - 1) / kLanes;
#pragma omp parallel if (num_rows * N * K > 32768)
    {
      const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
      if (!pack_alone) {
        pack(x, first_row, num_groups * thread / threads, num_groups * (thread + 1) / threads);
#pragma omp barrier
      }
      multiply(units * thread / threads * kLanes, std::min(N, units * (thread + 1) / threads * kLanes));
    }
  }
};

template <class T>
const float* widen_bias(const void* data, int64_t stride, int64_t N) {
  float* wide = scratch<2, float>(N + kLanes);
  for (int64_t n = 0; n < N; ++n) wide[n] = static_cast<const T*>(data)[n * stride];
  return wide;
}

struct View {  // what the C ABI tells of a tensor; borrowed
  void* data;
  int64_t dims;
  int64_t *sizes, *strides;
  int32_t dtype;

  explicit View(AtenTensorHandle t) {
    aoti_torch_get_data_ptr(t, &data);
    aoti_torch_get_dim(t, &dims);
    aoti_torch_get_sizes(t, &sizes);
    aoti_torch_get_strides(t, &strides);
    aoti_torch_get_dtype(t, &dtype);
  }
};

// Calls `f` with a null pointer of the C++ type of `dtype`.
template <class F>
auto with_type(int32_t dtype, const char* name, F f) {
  static const int32_t float32 = aoti_torch_dtype_float32(), bfloat16 = aoti_torch_dtype_bfloat16(),
                       float16 = aoti_torch_dtype_float16();
  STD_TORCH_CHECK(dtype == float32 || dtype == bfloat16 || dtype == float16, "nxdi_cpu::linear: ", name,
                  " must be float32, bfloat16 or float16; convert it with .to(torch.float32)");
  return dtype == float32 ? f((float*)nullptr) : dtype == bfloat16 ? f((BFloat16*)nullptr) : f((Half*)nullptr);
}

AtenTensorHandle linear(const View& x, const View& weight, const View* bias) {
  STD_TORCH_CHECK(x.dtype == aoti_torch_dtype_float32(), "nxdi_cpu::linear: x must be float32; use x.float()");
  STD_TORCH_CHECK(x.dims >= 1 && weight.dims == 2 && x.sizes[x.dims - 1] == weight.sizes[1],
                  "nxdi_cpu::linear: x must be [..., K] and weight [N, K] with the same K");
  const int64_t N = weight.sizes[0], K = weight.sizes[1];
  STD_TORCH_CHECK(weight.strides[1] == 1 || K <= 1, "nxdi_cpu::linear: rows of weight must be contiguous; use .contiguous()");
  STD_TORCH_CHECK(!bias || (bias->dims == 1 && bias->sizes[0] == N), "nxdi_cpu::linear: bias must be [N] like weight [N, K]");

  std::vector<int64_t> sizes(x.sizes, x.sizes + x.dims), strides(x.dims, 1);
  sizes.back() = N;
  for (int64_t d = x.dims - 1; d > 0; --d) strides[d - 1] = strides[d] * std::max<int64_t>(sizes[d], 1);
  AtenTensorHandle result;
  aoti_torch_empty_strided(x.dims, sizes.data(), strides.data(), x.dtype, aoti_torch_device_type_cpu(), 0, &result);
  float* y = static_cast<float*>(View(result).data);

  int64_t M = 1;
  for (int64_t d = 0; d + 1 < x.dims; ++d) M *= x.sizes[d];
  const float* wide_bias = bias ? with_type(bias->dtype, "bias", [&](auto* type) {
    return widen_bias<std::remove_pointer_t<decltype(type)>>(bias->data, bias->strides[0], N);
  }) : nullptr;
  const Rows rows{static_cast<const float*>(x.data), x.dims, x.sizes, x.strides};
  with_type(weight.dtype, "weight", [&](auto* type) {
    using W = std::remove_pointer_t<decltype(type)>;
    for (int64_t m = 0; N && m < M; m += kMaxRows)
      Product<W>{static_cast<const W*>(weight.data), weight.strides[0], N, K, wide_bias, y + m * N, std::min(kMaxRows, M - m)}
          .run(rows, m);
  });
  return result;
}

}  // namespace

// The C shim that graphs compiled by AOTInductor call directly. The name is inductor's: aoti_torch_<device>_<op>.
extern "C" AOTITorchError aoti_torch_cpu_linear(AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* bias, AtenTensorHandle* result) {
}
