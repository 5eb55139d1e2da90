// nxdi_cpu::linear(x, weight, bias=None): y = x @ weight.T + bias, fast for few rows of x, where
// the time is that of reading the weight from memory.
//
//   x       [..., K] float32, any strides
//   weight  [N, K] float32 | bfloat16 | float16, rows contiguous, any alignment (a mapped file)
//   bias    [N] of one of these types, or none
//   result  [..., N] float32, summed in float32
//
// How it streams. Each thread owns a range of weight rows and reads them once, in their stored
// type, widening them in registers: 16-bit weights cost half the traffic, and no second copy. A
// tile of R weight rows by C rows of x is summed in R*C vector registers, whose lanes are partial
// sums over k and are added up at the end. x is packed so that a tile reads it in order, one
// L1-sized slice of k at a time. While a strip of weight rows is multiplied, the next one is
// prefetched to L2, because hardware prefetchers stop at page ends and lag behind when there is
// arithmetic to do. Further rows of x pass over the strip in L2, C at a time, so that the same
// code serves a prompt, where the time is that of the arithmetic.
//
// An output is summed in the same order whatever rows surround it: a row of x has the same result,
// to the bit, alone and in a batch.
//
// GNU vector extensions (GCC, clang) let the compiler map Vec to AVX-512, AVX, NEON or SSE. Only
// torch's stable C ABI is used, whose headers compile in seconds.

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

// Rows of x and of the weight that a tile multiplies: what fits in the vector registers.
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 of them
constexpr int kMaxGroup = 8;
constexpr int tile_rows(int group) { return group <= 2 ? 8 : group <= 6 ? 4 : 2; }
#else  // 16
constexpr int kMaxGroup = 6;
constexpr int tile_rows(int group) { return group == 1 ? 8 : group == 2 ? 4 : 2; }
#endif

constexpr int kStep = 2 * kLanes;       // k advances by two vectors: one load of 16-bit weights
constexpr int kMaxStrip = 48;           // weight rows that stay in L2 while groups pass over them
constexpr int64_t kSliceBytes = 16384;  // packed x that stays in L1
constexpr int64_t kMaxRows = 128;       // rows of x packed at a time; bounds the scratch memory
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

// Vector `half` (0 or 1) of the kStep weights at w. Two bfloat16 are one 32-bit word, so half 0
// is the even k and half 1 the odd k, by a shift and a mask; pack() orders x alike.
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

// sums[c][r] += w[r] . x[c] over `steps` steps of k, for R weight rows and C rows of packed x.
template <class W, int R, int C>
inline void multiply_tile(const W* w, int64_t stride, const float* x, int64_t steps, Vec* sums,
                          const W* next) {
  Vec acc[R][C];
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int c = 0; c < C; ++c) acc[r][c] = sums[c * kMaxStrip + r];
  for (int64_t k = 0; k < steps * kStep; k += kStep) {
    if (next && k * sizeof(W) % kLineBytes == 0)
      UNROLL for (int r = 0; r < R; ++r)
        for (int64_t byte = 0; byte < int64_t(kStep * sizeof(W)); byte += kLineBytes)
          __builtin_prefetch((const char*)(next + r * stride + k) + byte, 0, 2);
    UNROLL for (int half = 0; half < 2; ++half, x += C * kLanes) {
      Vec wide[R];
      UNROLL for (int r = 0; r < R; ++r) {
        wide[r] = widen(w + r * stride + k, half);
        if (C > 1) IN_REGISTER(wide[r]);
      }
      UNROLL for (int c = 0; c < C; ++c) {
        Vec value = *(const Vec*)(x + c * kLanes);
        IN_REGISTER(value);
        UNROLL for (int r = 0; r < R; ++r) acc[r][c] = multiply_add(wide[r], value, acc[r][c]);
      }
    }
  }
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int c = 0; c < C; ++c) sums[c * kMaxStrip + r] = acc[r][c];
}

template <class W, int C>
void multiply_strip(const W* w, int64_t stride, int rows, const float* x, int64_t steps, Vec* sums,
                    const W* next) {
  constexpr int R = tile_rows(C);
  int r = 0;
  for (; r + R <= rows; r += R)
    multiply_tile<W, R, C>(w + r * stride, stride, x, steps, sums + r,
                           next ? next + r * stride : nullptr);
  for (; r < rows; ++r)
    multiply_tile<W, 1, C>(w + r * stride, stride, x, steps, sums + r, nullptr);
}

template <class W, int... I>
auto choose_strip(int64_t group, std::integer_sequence<int, I...>) {
  static constexpr decltype(&multiply_strip<W, 1>) table[] = {multiply_strip<W, I + 1>...};
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
  const float* row(int64_t m) const {  // row m of a float32 tensor seen as [M, K]
    const float* p = static_cast<const float*>(data);
    for (int64_t d = dims - 2; d >= 0; m /= sizes[d--]) p += m % sizes[d] * strides[d];
    return p;
  }
};

template <class W>
struct Product {  // y[m, n] = x[first_row + m] . w[n] + bias[n] for m < num_rows
  const View& x;
  const W* w;
  int64_t stride, N, K;  // stride: from one row of the weight to the next
  const float* bias;
  float* y;
  int64_t first_row, num_rows;
  int64_t num_groups = (num_rows + kMaxGroup - 1) / kMaxGroup;
  int64_t group = (num_rows + num_groups - 1) / num_groups;  // rows of x in each group
  int64_t whole_steps = K / kStep, tail = K % kStep;
  int64_t group_size = (whole_steps + (tail > 0)) * kStep * group;
  float* packed = scratch<0, float>(num_groups * group_size);  // [group][step][half][row][lane]

  void pack(int64_t first_group, int64_t end_group) const {  // zeros beyond the last row and k
    const int64_t x_stride = x.strides[x.dims - 1];
    for (int64_t m = first_group * group; m < end_group * group; ++m) {
      const float* row = m < num_rows ? x.row(first_row + m) : nullptr;
      float* out = packed + m / group * group_size + m % group * kLanes;
      for (int64_t k = 0; k < K; k += kStep, out += kStep * group) {
        float step[kStep] = {};
        if (row && x_stride == 1 && k + kStep <= K)
          std::memcpy(step, row + k, sizeof step);
        else if (row)
          for (int64_t i = 0; i < kStep && k + i < K; ++i) step[i] = row[(k + i) * x_stride];
        for (int i = 0; i < kLanes; ++i) {
          constexpr bool pairs = std::is_same_v<W, BFloat16>;
          out[i] = step[pairs ? 2 * i : i];
          out[i + group * kLanes] = step[pairs ? 2 * i + 1 : i + kLanes];
        }
      }
    }
  }

  void multiply(int64_t first, int64_t end) const {  // weight rows first..end
    const auto strip_kernel = choose_strip<W>(group, std::make_integer_sequence<int, kMaxGroup>{});
    const int64_t max_strip = num_groups > 1 ? kMaxStrip : 16;
    const int64_t slices = 1 + whole_steps * kStep * group * 4 / kSliceBytes;
    const int64_t slice = (whole_steps + slices - 1) / slices;
    Vec* sums = scratch<1, Vec>(num_groups * group * kMaxStrip);
    for (int64_t n = first; n < end; n += max_strip) {
      const int64_t strip = std::min(max_strip, end - n);
      const W* rows = w + n * stride;
      for (int64_t m = 0; m < num_groups * group; ++m)
        std::fill_n(sums + m * kMaxStrip, strip, Vec{});
      const auto add = [&](const W* w, int64_t stride, int64_t step, int64_t steps, const W* next) {
        for (int64_t g = 0; g < num_groups; ++g, next = nullptr)
          strip_kernel(w, stride, strip, packed + g * group_size + step * kStep * group, steps,
                       sums + g * group * kMaxStrip, next);
      };
      for (int64_t step = 0; step < whole_steps; step += slice) {
        const W* next = step + slice < whole_steps ? rows + (step + slice) * kStep
                        : n + strip < end          ? rows + strip * stride
                                                   : nullptr;
        add(rows + step * kStep, stride, step, std::min(slice, whole_steps - step), next);
      }
      if (tail) {
        W edge[kMaxStrip * kStep] = {};
        for (int64_t r = 0; r < strip; ++r)
          std::copy_n(rows + r * stride + whole_steps * kStep, tail, edge + r * kStep);
        add(edge, kStep, whole_steps, 1, nullptr);
      }
      store(sums, n, strip);
    }
  }

  void store(const Vec* sums, int64_t n, int64_t strip) const {
    for (int64_t m = 0; m < num_rows; ++m)
      for (int64_t r = 0; r < strip; r += kLanes) {
        Vec total = sum_lanes(sums + m * kMaxStrip + r);
        if (bias) total += *(const LooseVec*)(bias + n + r);
        float* out = y + m * N + n + r;
        if (r + kLanes <= strip)
          *(LooseVec*)out = total;
        else
          std::memcpy(out, &total, (strip - r) * sizeof(float));
      }
  }

  void run() const {
    const bool pack_alone = num_rows <= 16;  // cheaper than one more barrier
    if (pack_alone) pack(0, num_groups);
    const int64_t units = (N + kLanes - 1) / kLanes;
#pragma omp parallel if (num_rows * N * K > 32768)
    {
      const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
      if (!pack_alone) {
        pack(num_groups * thread / threads, num_groups * (thread + 1) / threads);
#pragma omp barrier
      }
      multiply(units * thread / threads * kLanes,
               std::min(N, units * (thread + 1) / threads * kLanes));
    }
  }
};

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("nxdi_cpu::linear: ") + message);
}

// Calls f with a null pointer of the C++ type of a weight or bias.
template <class F>
auto with_type(const View& tensor, F f) {
  if (tensor.dtype == aoti_torch_dtype_bfloat16()) return f((BFloat16*)nullptr);
  if (tensor.dtype == aoti_torch_dtype_float16()) return f((Half*)nullptr);
  require(tensor.dtype == aoti_torch_dtype_float32(),
          "weight and bias must be float32, bfloat16 or float16; convert them with .float()");
  return f((float*)nullptr);
}

const float* widen_bias(const View& bias) {
  float* wide = scratch<2, float>(bias.sizes[0] + kLanes);
  with_type(bias, [&](auto* type) {
    const auto* values = static_cast<decltype(type)>(bias.data);
    for (int64_t n = 0; n < bias.sizes[0]; ++n) wide[n] = values[n * bias.strides[0]];
  });
  return wide;
}

AtenTensorHandle empty_result(const View& x, int64_t N) {
  std::vector<int64_t> sizes(x.sizes, x.sizes + x.dims), strides(x.dims, 1);
  sizes.back() = N;
  for (int64_t d = x.dims - 1; d > 0; --d)
    strides[d - 1] = strides[d] * std::max<int64_t>(sizes[d], 1);
  AtenTensorHandle result;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(x.dims, sizes.data(), strides.data(), x.dtype,
                                                  aoti_torch_device_type_cpu(), 0, &result));
  return result;
}

AtenTensorHandle linear(const View& x, const View& weight, const std::optional<View>& bias) {
  require(x.dtype == aoti_torch_dtype_float32(), "x must be float32; convert it with .float()");
  require(x.dims > 0 && weight.dims == 2 && x.sizes[x.dims - 1] == weight.sizes[1],
          "x must be [..., K] and weight [N, K] with the same K; check the layer's input size");
  const int64_t N = weight.sizes[0], K = weight.sizes[1];
  require(weight.strides[1] == 1 || K <= 1, "rows of weight must be contiguous; use .contiguous()");
  require(!bias || (bias->dims == 1 && bias->sizes[0] == N), "bias must be [N] for weight [N, K]");
  int64_t M = 1;
  for (int64_t d = 0; d + 1 < x.dims; ++d) M *= x.sizes[d];
  const float* wide_bias = bias ? widen_bias(*bias) : nullptr;
  return with_type(weight, [&](auto* type) {
    using W = std::remove_pointer_t<decltype(type)>;
    const W* w = static_cast<const W*>(weight.data);
    const AtenTensorHandle result = empty_result(x, N);
    float* y = static_cast<float*>(View(result).data);
    for (int64_t m = 0; m < M && N > 0; m += kMaxRows)
      Product<W>{x, w, weight.strides[0], N, K, wide_bias, y + m * N, m, std::min(kMaxRows, M - m)}
          .run();
    return result;
  });
}

Tensor linear_op(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  return Tensor(linear(View(x.get()), View(weight.get()),
                       bias ? std::optional(View(bias->get())) : std::nullopt));
}

}  // namespace

// What AOTInductor's code calls, under the name that it derives from the op's. An exception passes
// through that code, which is C++, and becomes the error of the graph.
extern "C" AOTITorchError aoti_torch_cpu_linear(AtenTensorHandle x, AtenTensorHandle weight,
                                                AtenTensorHandle* bias, AtenTensorHandle* result) {
  *result = linear(View(x), View(weight), bias ? std::optional(View(*bias)) : std::nullopt);
  return AOTI_TORCH_SUCCESS;
}

STABLE_TORCH_LIBRARY_FRAGMENT(nxdi_cpu, library) {
  library.def("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor");
}

#ifndef TORCH_BOX  // torch 2.9
#define TORCH_BOX(function) boxed
static void boxed(StableIValue* stack, uint64_t, uint64_t) {
  stack[0] = from(linear_op(to<Tensor>(stack[0]), to<Tensor>(stack[1]),
                            to<std::optional<Tensor>>(stack[2])));
}
#endif

STABLE_TORCH_LIBRARY_IMPL(nxdi_cpu, CPU, library) { library.impl("linear", TORCH_BOX(&linear_op)); }
