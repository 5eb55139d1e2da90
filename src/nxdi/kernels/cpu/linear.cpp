// nxdi_cpu::linear(x, weight, bias=None, ...): y = x @ weight.T + bias, fast for few rows of x,
// where the time is that of reading the weight from memory.
//
//   x       [..., K] float32, any strides
//   weight  [N, K] float32 | bfloat16 | float16 | int8, rows contiguous, any alignment (a mapped
//           file); int8 as the integers that they are, for the caller to scale
//   bias    [N] of one of these types, or none
//   result  [..., N] float32, summed in float32
//
// Up to two further weights of the same type, each with a bias or none, may follow. Their outputs
// come after those of the first in the last dimension, with the bits of separate calls: threads
// start once instead of three times, and share the rows of all weights evenly.
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

#include "vectors.h"

namespace {

// Rows of x and of the weight that a tile multiplies: what fits in the vector registers.
#if defined(__AVX512F__) || defined(__aarch64__)  // 32 of them
constexpr int kMaxGroup = 8;
constexpr int tile_rows(int group) { return group <= 2 ? 8 : group <= 6 ? 4 : 2; }
#else  // 16
constexpr int kMaxGroup = 6;
constexpr int tile_rows(int group) { return group == 1 ? 8 : group == 2 ? 4 : 2; }
#endif

constexpr int kMaxStrip = 48;           // weight rows that stay in L2 while groups pass over them
constexpr int64_t kSliceBytes = 16384;  // packed x that stays in L1
constexpr int64_t kMaxRows = 128;       // rows of x packed at a time; bounds the scratch memory

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

// Group `group` of `groups` prefetches its share of the next strip, so that memory is read all the
// while.
template <class W, int C>
void multiply_strip(const W* w, int64_t stride, int rows, const float* x, int64_t steps, Vec* sums,
                    const W* next, int64_t group, int64_t groups) {
  constexpr int R = tile_rows(C);
  int r = 0;
  for (; r + R <= rows; r += R)
    multiply_tile<W, R, C>(w + r * stride, stride, x, steps, sums + r,
                           next && r / R % groups == group ? next + r * stride : nullptr);
  for (; r < rows; ++r)
    multiply_tile<W, 1, C>(w + r * stride, stride, x, steps, sums + r, nullptr);
}

template <class W, int... I>
auto choose_strip(int64_t group, std::integer_sequence<int, I...>) {
  static constexpr decltype(&multiply_strip<W, 1>) table[] = {multiply_strip<W, I + 1>...};
  return table[group - 1];
}

template <class W>
struct Matrix {  // a weight, its bias or null, and the column of y where its outputs start
  const W* w;
  int64_t stride, N;  // stride: from one row to the next
  const float* bias;
  int64_t column;

  int64_t units() const { return (N + kLanes - 1) / kLanes; }  // of work: never a part of a vector
};

template <class W>
struct Product {  // y[m, column + n] = x[first_row + m] . w[n] + bias[n] for m < num_rows
  const View& x;
  const std::vector<Matrix<W>>& matrices;
  int64_t K, columns;  // of x, of y
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
      const float* row = row_of(x, first_row + std::min(m, num_rows - 1));
      const int64_t count = m < num_rows ? K : 0;
      float* out = packed + m / group * group_size + m % group * kLanes;
      for (int64_t k = 0; k < K; k += kStep, out += kStep * group)
        load_step<W>(row + k * x_stride, x_stride, count - k, out, out + group * kLanes);
    }
  }

  void multiply(const Matrix<W>& matrix, int64_t first, int64_t end) const {  // its rows first..end
    const int64_t stride = matrix.stride;
    const auto strip_kernel = choose_strip<W>(group, std::make_integer_sequence<int, kMaxGroup>{});
    const int64_t max_strip = num_groups > 1 ? kMaxStrip : 16;
    const int64_t slices = 1 + whole_steps * kStep * group * 4 / kSliceBytes;
    const int64_t slice = (whole_steps + slices - 1) / slices;
    Vec* sums = scratch<1, Vec>(num_groups * group * kMaxStrip);
    for (int64_t n = first; n < end; n += max_strip) {
      const int64_t strip = std::min(max_strip, end - n);
      const W* rows = matrix.w + n * stride;
      for (int64_t m = 0; m < num_groups * group; ++m)
        std::fill_n(sums + m * kMaxStrip, strip, Vec{});
      const auto add = [&](const W* w, int64_t stride, int64_t step, int64_t steps, const W* next) {
        for (int64_t g = 0; g < num_groups; ++g)
          strip_kernel(w, stride, strip, packed + g * group_size + step * kStep * group, steps,
                       sums + g * group * kMaxStrip, next, g, num_groups);
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
      store(matrix, sums, n, strip);
    }
  }

  void store(const Matrix<W>& matrix, const Vec* sums, int64_t n, int64_t strip) const {
    for (int64_t m = 0; m < num_rows; ++m)
      for (int64_t r = 0; r < strip; r += kLanes) {
        Vec total = sum_lanes(sums + m * kMaxStrip + r);
        if (matrix.bias) total += *(const LooseVec*)(matrix.bias + n + r);
        float* out = y + m * columns + matrix.column + n + r;
        if (r + kLanes <= strip)
          *(LooseVec*)out = total;
        else
          std::memcpy(out, &total, (strip - r) * sizeof(float));
      }
  }

  void multiply_share(int64_t thread, int64_t threads) const {
    int64_t units = 0, before = 0;
    for (const Matrix<W>& matrix : matrices) units += matrix.units();
    const int64_t first = units * thread / threads, end = units * (thread + 1) / threads;
    for (const Matrix<W>& matrix : matrices) {
      multiply(matrix, std::max<int64_t>(first - before, 0) * kLanes,
               std::min(matrix.N, (end - before) * kLanes));
      before += matrix.units();
    }
  }

  void run() const {
    const bool pack_alone = num_rows <= 16;  // cheaper than one more barrier
    if (pack_alone) pack(0, num_groups);
#pragma omp parallel if (num_rows * columns * K > 32768)
    {
      const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
      if (!pack_alone) {
        pack(num_groups * thread / threads, num_groups * (thread + 1) / threads);
#pragma omp barrier
      }
      multiply_share(thread, threads);
    }
  }
};

constexpr auto kTypes =
    "linear: weight and bias must be float32, bfloat16 or float16 (weight also int8); convert them "
    "with .float()";

template <class F>
auto with_weight_type(const View& weight, F f) {
  if (weight.dtype == aoti_torch_dtype_int8()) return f((int8_t*)nullptr);
  return with_type(weight, kTypes, f);
}

struct Operand {
  View weight;
  std::optional<View> bias;
};

// The biases one after the other, each with room to be read in whole vectors.
std::vector<const float*> widen_biases(const std::vector<Operand>& operands) {
  int64_t size = 0;
  for (const Operand& operand : operands) size += operand.weight.sizes[0] + kLanes;
  float* wide = scratch<2, float>(size);
  std::vector<const float*> biases;
  for (const auto& [weight, bias] : operands) {
    biases.push_back(bias ? wide : nullptr);
    if (!bias) continue;
    with_type(*bias, kTypes, [&, &bias = bias](auto* type) {
      const auto* values = static_cast<decltype(type)>(bias->data);
      for (int64_t n = 0; n < bias->sizes[0]; ++n) wide[n] = values[n * bias->strides[0]];
    });
    wide += bias->sizes[0] + kLanes;
  }
  return biases;
}

void check(const View& x, const std::vector<Operand>& operands) {
  require(x.dtype == aoti_torch_dtype_float32(),
          "linear: x must be float32; convert it with x.float()");
  for (const auto& [weight, bias] : operands) {
    require(x.dims > 0 && weight.dims == 2 && x.sizes[x.dims - 1] == weight.sizes[1],
            "linear: x must be [..., K] and weight [N, K] with the same K; check the sizes");
    require(weight.strides[1] == 1 || weight.sizes[1] <= 1,
            "linear: rows of weight must be contiguous; use .contiguous()");
    require(!bias || (bias->dims == 1 && bias->sizes[0] == weight.sizes[0]),
            "linear: bias must be [N] for weight [N, K]");
    require(weight.dtype == operands[0].weight.dtype,
            "linear: weights of one call must be of one dtype; call once for each");
  }
}

AtenTensorHandle linear(const View& x, const std::vector<Operand>& operands) {
  check(x, operands);
  const std::vector<const float*> biases = widen_biases(operands);
  return with_weight_type(operands[0].weight, [&](auto* type) {
    using W = std::remove_pointer_t<decltype(type)>;
    std::vector<Matrix<W>> matrices;
    int64_t columns = 0, M = 1;
    for (size_t i = 0; i < operands.size(); ++i) {
      const View& weight = operands[i].weight;
      const W* w = static_cast<const W*>(weight.data);
      matrices.push_back({w, weight.strides[0], weight.sizes[0], biases[i], columns});
      columns += weight.sizes[0];
    }
    std::vector<int64_t> sizes(x.sizes, x.sizes + x.dims);
    sizes.back() = columns;
    for (int64_t d = 0; d + 1 < x.dims; ++d) M *= x.sizes[d];
    const AtenTensorHandle result = empty_float32(sizes);
    float* y = static_cast<float*>(View(result).data);
    for (int64_t m = 0; m < M && columns > 0; m += kMaxRows)
      Product<W>{x, matrices, x.sizes[x.dims - 1], columns, y + m * columns, m,
                 std::min(kMaxRows, M - m)}
          .run();
    return result;
  });
}

struct Handles {
  AtenTensorHandle weight, bias;  // null: none
};

AtenTensorHandle linear_of(AtenTensorHandle x, std::initializer_list<Handles> handles) {
  std::vector<Operand> operands;
  for (const auto& [weight, bias] : handles)
    if (weight) operands.push_back({View(weight), bias ? std::optional(View(bias)) : std::nullopt});
  return linear(View(x), operands);
}

using Optional = std::optional<Tensor>;

Tensor linear_op(const Tensor& x, const Tensor& weight, const Optional& bias,
                 const Optional& weight2, const Optional& bias2, const Optional& weight3,
                 const Optional& bias3) {
  const auto handle = [](const Optional& tensor) { return tensor ? tensor->get() : nullptr; };
  return Tensor(linear_of(x.get(), {{weight.get(), handle(bias)},
                                 {handle(weight2), handle(bias2)},
                                 {handle(weight3), handle(bias3)}}));
}

}  // namespace

// What AOTInductor's code calls, under the name that it derives from the op's. An exception passes
// through that code, which is C++, and becomes the error of the graph.
extern "C" AOTITorchError aoti_torch_cpu_linear(
    AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle* bias, AtenTensorHandle* weight2,
    AtenTensorHandle* bias2, AtenTensorHandle* weight3, AtenTensorHandle* bias3,
    AtenTensorHandle* result) {
  const auto handle = [](AtenTensorHandle* tensor) { return tensor ? *tensor : nullptr; };
  *result = linear_of(x, {{weight, handle(bias)},
                          {handle(weight2), handle(bias2)},
                          {handle(weight3), handle(bias3)}});
  return AOTI_TORCH_SUCCESS;
}

STABLE_TORCH_LIBRARY_FRAGMENT(nxdi_cpu, library) {
  library.def(
      "linear(Tensor x, Tensor weight, Tensor? bias=None, Tensor? weight2=None, "
      "Tensor? bias2=None, Tensor? weight3=None, Tensor? bias3=None) -> Tensor");
}

#ifndef TORCH_BOX  // torch 2.9
#define TORCH_BOX(function) boxed
static void boxed(StableIValue* stack, uint64_t, uint64_t) {
  const auto optional = [&](int i) { return to<Optional>(stack[i]); };
  stack[0] = from(linear_op(to<Tensor>(stack[0]), to<Tensor>(stack[1]), optional(2), optional(3),
                            optional(4), optional(5), optional(6)));
}
#endif

STABLE_TORCH_LIBRARY_IMPL(nxdi_cpu, CPU, library) { library.impl("linear", TORCH_BOX(&linear_op)); }
