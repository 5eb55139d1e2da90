// nxdi_cpu::int4_linear(x, weight, scale): y = x @ (weight * scale).T for weights of four bits, two
// in a byte, with a scale for each group of 32 or of 128 in a row.
//
//   x       [..., K] float32, any strides
//   weight  [N, K / 2 rounded up] uint8, contiguous, any alignment: integers from -8 to 7 in two's
//           complement, the first of two in the lower half of a byte
//   scale   [N, K / group rounded up] float32, contiguous
//   result  [..., N] float32, summed in float32
//
// Up to two further weights with their scales may follow; their outputs come after those of the
// first, with the bits of separate calls.
//
// A 32-bit word holds eight weights. With their upper bits flipped they are 8 too large, and none is
// below 0. A mask then brings out one of them, times a power of 16, which is converted as it is: x is
// packed in the order of the words and divided by that power. The 8 comes off with x as well, as -8
// times the sum of what a lane multiplies. The products of a chunk, a vector of words, are summed
// before they are scaled. An output is summed in the same order whatever rows surround it.

#include "vectors.h"

namespace {

constexpr int kNibbles = 8;                   // of a word
constexpr int kParts = kNibbles + 1;          // vectors of x for a chunk: one more for the sums
constexpr int kChunk = kNibbles * kLanes;     // weights of a vector of words
constexpr int kChunkBytes = 4 * kLanes;
constexpr int64_t kMaxPacked = 128;           // rows of x packed at a time
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxColumns = 8;                // rows of x that a tile multiplies
constexpr int rows_for(int columns) { return columns == 1 ? 8 : columns == 2 ? 4 : 2; }
#else
constexpr int kMaxColumns = 4;
constexpr int rows_for(int columns) { return columns == 1 ? 4 : 2; }
#endif

typedef int32_t Words __attribute__((vector_size(kLanes * 4)));

// Number `place` of the eight in each word, from 0 to 15, as floats times 16 ** (place % 4).
inline Vec nibble(Bits words, int place) {
  const Bits half = place < 4 ? words : words >> 16;
  return __builtin_convertvector((Words)(half & (15u << place % 4 * 4)), Vec);
}

// The scales of chunk `chunk`, one for each lane, whose eight weights belong to one group.
template <int Group>
inline Vec scales_of(const float* scales, int64_t chunk) {
  if constexpr (Group >= kChunk) return Vec{} + scales[chunk * kChunk / Group];
#if defined(__AVX512F__)
  const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m512 four = _mm512_castps128_ps512(_mm_loadu_ps(scales + chunk * (kChunk / Group)));
  return (Vec)_mm512_permutexvar_ps(lanes, four);
#elif defined(__AVX__)
  const float* two = scales + chunk * (kChunk / Group);
  return (Vec)_mm256_set_m128(_mm_broadcast_ss(two + 1), _mm_broadcast_ss(two));
#endif
}

struct Four {  // a weight, and the column of y where its outputs start
  const uint8_t* w;
  const float* scales;
  int64_t N, bytes, groups, group, column;

  int64_t units() const { return (N + kLanes - 1) / kLanes; }
};

// sums[c][r] += w[r] . x[c] over `chunks` chunks, for R weight rows and C rows of packed x.
template <int Group, int R, int C>
inline void multiply_chunks(const uint8_t* w, int64_t bytes, const float* scales, int64_t groups,
                            const float* x, int64_t chunks, Vec* sums) {
  Vec acc[R][C];
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int c = 0; c < C; ++c) acc[r][c] = sums[c * kLanes + r];
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    Bits words[R];
    Vec part[R][C];
    UNROLL for (int r = 0; r < R; ++r) {
      const uint8_t* source = w + r * bytes + chunk * kChunkBytes;
      words[r] = *(const LooseBits*)source ^ 0x88888888u;
      __builtin_prefetch(source + R * bytes, 0, 2);  // the rows that follow
    }
    UNROLL for (int c = 0; c < C; ++c, x += kLanes)
      UNROLL for (int r = 0; r < R; ++r) part[r][c] = *(const Vec*)x;
    UNROLL for (int place = 0; place < kNibbles; ++place, x += C * kLanes) {
      Vec wide[R];
      UNROLL for (int r = 0; r < R; ++r) wide[r] = nibble(words[r], place);
      UNROLL for (int c = 0; c < C; ++c) {
        Vec value = *(const Vec*)(x + c * kLanes);
        IN_REGISTER(value);
        UNROLL for (int r = 0; r < R; ++r)
          part[r][c] = multiply_add(wide[r], value, part[r][c]);
      }
    }
    UNROLL for (int r = 0; r < R; ++r) {
      const Vec scale = scales_of<Group>(scales + r * groups, chunk);
      UNROLL for (int c = 0; c < C; ++c) acc[r][c] = multiply_add(part[r][c], scale, acc[r][c]);
    }
  }
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int c = 0; c < C; ++c) sums[c * kLanes + r] = acc[r][c];
}

// R rows of a weight. Their last chunk may go beyond a row: x is zero there, so that what follows in
// memory is of no effect. At the end of the weight, where nothing follows, it is copied.
template <int Group, int R, int C>
void multiply_rows(const Four& four, int64_t n, const float* x, Vec* sums) {
  const int64_t chunks = four.bytes / kChunkBytes, rest = four.bytes % kChunkBytes;
  const uint8_t* w = four.w + n * four.bytes;
  const float* scales = four.scales + n * four.groups;
  constexpr int64_t most = (kChunk + Group - 1) / Group;  // scales that a chunk reads
  const int64_t first = chunks * kChunk / Group, last_row = n + R - 1;
  const bool stays = last_row * four.bytes + (chunks + 1) * kChunkBytes <= four.N * four.bytes &&
                     last_row * four.groups + first + most <= four.N * four.groups;
  multiply_chunks<Group, R, C>(w, four.bytes, scales, four.groups, x, chunks + (rest && stays),
                               sums);
  if (!rest || stays) return;
  uint8_t edge[R * kChunkBytes] = {};
  float edge_scales[R * most] = {};
  for (int r = 0; r < R; ++r) {
    std::memcpy(edge + r * kChunkBytes, w + r * four.bytes + chunks * kChunkBytes, rest);
    std::copy(scales + r * four.groups + first, scales + (r + 1) * four.groups,
              edge_scales + r * most);
  }
  multiply_chunks<Group, R, C>(edge, kChunkBytes, edge_scales, most,
                               x + chunks * kParts * kLanes * C, 1, sums);
}

struct Task {  // y[m] = x[first + m] @ weights for m < rows
  const View& x;
  const std::vector<Four>& fours;
  int64_t K, columns;
  float* y;
  int64_t first, rows;
  int64_t num_groups = (rows + kMaxColumns - 1) / kMaxColumns;
  int64_t group = (rows + num_groups - 1) / num_groups;
  int64_t chunks = (K + kChunk - 1) / kChunk;
  int64_t chunk_size = kParts * kLanes * group, group_size = chunks * chunk_size;
  float* packed = scratch<3, float>(num_groups * group_size);  // [group][chunk][part][row][lane]

  void pack(int64_t begin, int64_t end) const {  // groups
    const int64_t stride = x.strides[x.dims - 1];
    for (int64_t m = begin * group; m < end * group; ++m) {
      const float* row = row_of(x, first + std::min(m, rows - 1));
      float* out = packed + m / group * group_size + m % group * kLanes;
      for (int64_t chunk = 0; chunk < chunks; ++chunk, out += chunk_size)
        for (int lane = 0; lane < kLanes; ++lane) {
          float sum = 0;
          for (int place = 0; place < kNibbles; ++place) {
            const int64_t k = chunk * kChunk + lane * kNibbles + place;
            const float value = k < K && m < rows ? row[k * stride] : 0;
            out[(1 + place) * group * kLanes + lane] = value / (1 << place % 4 * 4);
            sum += value;
          }
          out[lane] = -8 * sum;
        }
    }
  }

  template <int Group, int C>
  void multiply(const Four& four, int64_t begin, int64_t end) const {  // its rows begin..end
    constexpr int R = rows_for(C);
    for (int64_t n = begin; n < end; n += kLanes) {
      const int64_t strip = std::min<int64_t>(kLanes, end - n);
      for (int64_t g = 0; g < num_groups; ++g) {
        Vec sums[C * kLanes] = {};
        const float* part = packed + g * group_size;
        int64_t r = 0;
        for (; r + R <= strip; r += R) multiply_rows<Group, R, C>(four, n + r, part, sums + r);
        for (; r < strip; ++r) multiply_rows<Group, 1, C>(four, n + r, part, sums + r);
        for (int64_t c = 0; c < C && g * group + c < rows; ++c) {
          const Vec total = sum_lanes(sums + c * kLanes);
          std::memcpy(y + (g * group + c) * columns + four.column + n, &total,
                      strip * sizeof(float));
        }
      }
    }
  }

  template <int... I>
  void choose(const Four& four, int64_t begin, int64_t end,
              std::integer_sequence<int, I...>) const {
    using Method = void (Task::*)(const Four&, int64_t, int64_t) const;
    static constexpr Method of32[] = {&Task::multiply<32, I + 1>...};
    static constexpr Method of128[] = {&Task::multiply<128, I + 1>...};
    (this->*(four.group == 32 ? of32 : of128)[group - 1])(four, begin, end);
  }

  void multiply_share(int64_t thread, int64_t threads) const {
    int64_t units = 0, before = 0;
    for (const Four& four : fours) units += four.units();
    const int64_t begin = units * thread / threads, end = units * (thread + 1) / threads;
    for (const Four& four : fours) {
      choose(four, std::max<int64_t>(begin - before, 0) * kLanes,
             std::min(four.N, (end - before) * kLanes),
             std::make_integer_sequence<int, kMaxColumns>{});
      before += four.units();
    }
  }

  void run() const {
#pragma omp parallel if (rows * columns * K > 32768)
    {
      const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
      pack(num_groups * thread / threads, num_groups * (thread + 1) / threads);
#pragma omp barrier
      multiply_share(thread, threads);
    }
  }
};

Four checked(const View& x, const View& weight, const View& scale, int64_t column) {
  require(weight.dtype == aoti_torch_dtype_uint8() && weight.dims == 2 &&
              scale.dtype == aoti_torch_dtype_float32() && scale.dims == 2,
          "int4_linear: weight must be uint8 [N, K / 2] and scale float32 [N, K / group]");
  const int64_t N = weight.sizes[0], bytes = weight.sizes[1], groups = scale.sizes[1];
  const int64_t K = x.sizes[x.dims - 1];
  const auto up = [&](int64_t size) { return (K + size - 1) / size; };
  const int64_t group = groups == up(128) ? 128 : 32;  // the same where both fit
  require(bytes == up(2) && scale.sizes[0] == N && groups == up(group),
          "int4_linear: for x of [..., K] weight must be [N, K / 2] and scale [N, K / 32] or "
          "[N, K / 128], rounded up");
  const auto dense = [](const View& t) {
    return t.strides[1] == 1 && (t.strides[0] == t.sizes[1] || t.sizes[0] <= 1);
  };
  require(dense(weight) && dense(scale),
          "int4_linear: weight and scale must be contiguous; use .contiguous()");
  return {static_cast<const uint8_t*>(weight.data), static_cast<const float*>(scale.data), N,
          bytes, groups, group, column};
}

AtenTensorHandle int4_of(AtenTensorHandle x_handle,
                         std::initializer_list<std::pair<AtenTensorHandle, AtenTensorHandle>> all) {
  const View x(x_handle);
  require(x.dtype == aoti_torch_dtype_float32() && x.dims > 0,
          "int4_linear: x must be float32 [..., K]; convert it with x.float()");
  std::vector<Four> fours;
  int64_t columns = 0, M = 1;
  for (const auto& [weight, scale] : all) {
    if (!weight) continue;
    require(scale, "int4_linear: every weight must have a scale");
    fours.push_back(checked(x, View(weight), View(scale), columns));
    columns += fours.back().N;
  }
  std::vector<int64_t> sizes(x.sizes, x.sizes + x.dims);
  sizes.back() = columns;
  for (int64_t d = 0; d + 1 < x.dims; ++d) M *= x.sizes[d];
  const AtenTensorHandle result = empty_float32(sizes);
  float* y = static_cast<float*>(View(result).data);
  for (int64_t m = 0; m < M && columns > 0; m += kMaxPacked)
    Task{x, fours, x.sizes[x.dims - 1], columns, y + m * columns, m, std::min(kMaxPacked, M - m)}
        .run();
  return result;
}

using Optional = std::optional<Tensor>;

Tensor int4_op(const Tensor& x, const Tensor& weight, const Tensor& scale, const Optional& weight2,
               const Optional& scale2, const Optional& weight3, const Optional& scale3) {
  const auto handle = [](const Optional& tensor) { return tensor ? tensor->get() : nullptr; };
  return Tensor(int4_of(x.get(), {{weight.get(), scale.get()},
                               {handle(weight2), handle(scale2)},
                               {handle(weight3), handle(scale3)}}));
}

}  // namespace

extern "C" AOTITorchError aoti_torch_cpu_int4_linear(
    AtenTensorHandle x, AtenTensorHandle weight, AtenTensorHandle scale, AtenTensorHandle* weight2,
    AtenTensorHandle* scale2, AtenTensorHandle* weight3, AtenTensorHandle* scale3,
    AtenTensorHandle* result) {
  const auto handle = [](AtenTensorHandle* tensor) { return tensor ? *tensor : nullptr; };
  *result = int4_of(x, {{weight, scale},
                        {handle(weight2), handle(scale2)},
                        {handle(weight3), handle(scale3)}});
  return AOTI_TORCH_SUCCESS;
}

STABLE_TORCH_LIBRARY_FRAGMENT(nxdi_cpu, library) {
  library.def(
      "int4_linear(Tensor x, Tensor weight, Tensor scale, Tensor? weight2=None, "
      "Tensor? scale2=None, Tensor? weight3=None, Tensor? scale3=None) -> Tensor");
}

#ifndef TORCH_BOX  // torch 2.9
#define TORCH_BOX(function) boxed
static void boxed(StableIValue* stack, uint64_t, uint64_t) {
  const auto optional = [&](int i) { return to<Optional>(stack[i]); };
  stack[0] = from(int4_op(to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<Tensor>(stack[2]),
                          optional(3), optional(4), optional(5), optional(6)));
}
#endif

STABLE_TORCH_LIBRARY_IMPL(nxdi_cpu, CPU, library) {
  library.impl("int4_linear", TORCH_BOX(&int4_op));
}
