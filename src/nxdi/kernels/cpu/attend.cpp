// nxdi_cpu::attend_decode(q, k, v, allowed, sinks, scale, softcap): attention of one query per row
// over grouped heads, where the time is that of reading the cache.
//
//   q        [B, N, G, 1, D] float32
//   k, v     [B, N, L, D] float32 | bfloat16 | float16: views of a cache, never copied
//   allowed  [B, 1, L] bool: which keys a row sees
//   sinks    [N, G] float32: a further logit of each head, without a value; or none
//   softcap  scores become softcap * tanh(score / softcap); or none
//   result   [B, N, G, 1, D] float32; a row that sees nothing is zero
//
// Any strides. Keys and values that a row does not see are not read, so the cost is that of the
// sequence and not of the graph's bucket. The G queries of a key head share each read of a key.
//
// The keys of each row and key head are cut into blocks, which are the work of the threads; each
// block yields a maximum, a sum and a weighted sum of values, and these are joined in order. Cuts
// and order depend on nothing but the place of a key, so a row has the same result, to the bit,
// alone and in any batch, and with any number of threads.

#include "vectors.h"

#include <cmath>
#include <limits>

namespace {

constexpr int kBlock = 32;  // keys; a multiple of kLanes
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxGroup = 8;  // queries summed up in registers at a time
#else
constexpr int kMaxGroup = 4;
#endif
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class F>
inline float fold(Vec values, F f) {  // f over its lanes, as a tree
  float lanes[kLanes];
  std::memcpy(lanes, &values, sizeof lanes);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = f(lanes[i], lanes[i + width]);
  return lanes[0];
}

// e**x = 2**n e**r with x = n ln 2 + r, for x <= 0, to about an ulp; below -87 it is e**-87.
inline Vec exponential(Vec x) {
  x = x < -87.0f ? Vec{} - 87.0f : x;
  // Added to 1.5 * 2**23, a number is rounded, and its integer stands in the low bits.
  const Vec shifted = multiply_add(x, Vec{} + 1.44269504f, Vec{} + 12582912.0f);
  const Vec n = shifted - 12582912.0f;
  const Vec r = multiply_add(n, Vec{} - 1.42860677e-6f, multiply_add(n, Vec{} - 0.693145752f, x));
  Vec sum = Vec{} + 1.0f / 5040;
  for (float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = multiply_add(sum, r, Vec{} + term);
  return sum * (Vec)(((Bits)shifted + 127) << 23);
}

// scores[g][j] = q[g] . keys[j] for `count` keys, filled up to a multiple of kLanes. As they pass,
// the values that will be read next are fetched.
template <class T, int G>
void multiply_keys(const T* const* keys, const T* const* values, int count, const float* q,
                   int64_t size, float* scores) {
  for (int first = 0; first < count; first += kLanes) {
    Vec sums[G][kLanes];
    for (int j = 0; j < kLanes; ++j) {
      const T* key = keys[first + j];
      const char* value = (const char*)values[first + j];
      for (int64_t byte = 0; byte < size * int64_t(sizeof(T)); byte += kLineBytes)
        __builtin_prefetch(value + byte);
      Vec acc[G] = {};
      for (int64_t d = 0; d < size; d += kStep)
        UNROLL for (int half = 0; half < 2; ++half) {
          const Vec wide = widen(key + d, half);
          const float* x = q + d + half * kLanes;
          UNROLL for (int g = 0; g < G; ++g)
            acc[g] = multiply_add(wide, *(const Vec*)(x + g * size), acc[g]);
        }
      UNROLL for (int g = 0; g < G; ++g) sums[g][j] = acc[g];
    }
    for (int g = 0; g < G; ++g) *(Vec*)(scores + g * kBlock + first) = sum_lanes(sums[g]);
  }
}

// out[g] = sum of weights[g][j] * values[j] over `count` keys.
template <class T, int G>
void add_values(const T* const* values, int count, const float* weights, int64_t size, float* out) {
  for (int64_t d = 0; d < size; d += kStep) {
    Vec acc[G][2] = {};
    for (int j = 0; j < count; ++j) {
      const Vec wide[2] = {widen(values[j] + d, 0), widen(values[j] + d, 1)};
      UNROLL for (int g = 0; g < G; ++g) {
        const Vec weight = Vec{} + weights[g * kBlock + j];
        acc[g][0] = multiply_add(weight, wide[0], acc[g][0]);
        acc[g][1] = multiply_add(weight, wide[1], acc[g][1]);
      }
    }
    UNROLL for (int g = 0; g < G; ++g)
      UNROLL for (int half = 0; half < 2; ++half)
        *(Vec*)(out + g * size + d + half * kLanes) = acc[g][half];
  }
}

struct Unit {  // a block of keys of one row and key head, in which the row sees something
  int64_t row, head, block;
};

struct Call {
  View q, k, v, allowed;
  std::optional<View> sinks;
  float scale;
  std::optional<float> softcap;
  float* y;

  bool sees(int64_t row, int64_t key) const {
    const bool* flags = static_cast<const bool*>(allowed.data);
    return flags[row * allowed.strides[0] + key * allowed.strides[2]];
  }
  float sink(int64_t head, int64_t g) const {
    if (!sinks) return -kInfinity;
    return static_cast<const float*>(sinks->data)[head * sinks->strides[0] + g * sinks->strides[1]];
  }

  // Units in the order of rows, heads and blocks; starts[row * N + head] is where those of
  // a pair begin.
  std::vector<Unit> plan(std::vector<size_t>& starts) const {
    std::vector<Unit> units;
    std::vector<int64_t> blocks;
    for (int64_t row = 0; row < q.sizes[0]; ++row) {
      blocks.clear();
      for (int64_t key = 0; key < k.sizes[2]; ++key)
        if (sees(row, key)) {
          blocks.push_back(key / kBlock);
          key |= kBlock - 1;  // on to the next block
        }
      for (int64_t head = 0; head < q.sizes[1]; ++head) {
        starts.push_back(units.size());
        for (int64_t block : blocks) units.push_back({row, head, block});
      }
    }
    starts.push_back(units.size());
    return units;
  }
};

template <class T>
struct Attention {
  const Call& call;
  const std::vector<Unit>& units;
  const std::vector<size_t>& starts;
  int64_t B = call.q.sizes[0], N = call.q.sizes[1], G = call.q.sizes[2], L = call.k.sizes[2];
  int64_t D = call.q.sizes[4];
  int64_t size = (D + kStep - 1) / kStep * kStep;               // of a head, with zeros beyond D
  float* packed = scratch<0, float>(B * N * G * size);          // [row][head][query][size]
  float* partial = scratch<1, float>(units.size() * G * size);  // [unit][query][size]
  float* maxima = scratch<2, float>(units.size() * G);          // [unit][query]
  float* sums = scratch<3, float>(units.size() * G);            // [unit][query]

  struct Keys {  // of a unit: those that the row sees
    const T *keys[kBlock], *values[kBlock];
    int count;
  };

  void pack() const {
    const int64_t* strides = call.q.strides;
    for (int64_t i = 0; i < B * N * G; ++i) {
      const float* q = static_cast<const float*>(call.q.data) + i / (N * G) * strides[0] +
                       i / G % N * strides[1] + i % G * strides[2];
      for (int64_t d = 0; d < size; d += kStep) {
        float* out = packed + i * size + d;
        load_step<T>(q + d * strides[4], strides[4], D - d, out, out + kLanes);
      }
    }
  }

  // Row `key` of k or v; a copy where it cannot be read in whole steps.
  const T* readable(const View& cache, const Unit& unit, int64_t key, T* copy) const {
    const T* row = static_cast<const T*>(cache.data) + unit.row * cache.strides[0] +
                   unit.head * cache.strides[1] + key * cache.strides[2];
    if (D == size && cache.strides[3] == 1) return row;
    for (int64_t d = 0; d < size; ++d) copy[d] = d < D ? row[d * cache.strides[3]] : T(0);
    return copy;
  }

  template <int Queries = 1>
  void attend_queries(int64_t queries, const Keys& keys, const float* q, size_t at) const {
    if constexpr (Queries < kMaxGroup)
      if (Queries < queries) return attend_queries<Queries + 1>(queries, keys, q, at);
    alignas(kLineBytes) float scores[Queries * kBlock];
    multiply_keys<T, Queries>(keys.keys, keys.values, keys.count, q, size, scores);
    for (int g = 0; g < Queries; ++g) soften(scores + g * kBlock, keys.count, at + g);
    add_values<T, Queries>(keys.values, keys.count, scores, size, partial + at * size);
  }

  // Products become e**(score - maximum).
  void soften(float* scores, int count, size_t at) const {
    for (int j = 0; j < count; ++j) {
      scores[j] *= call.scale;
      if (call.softcap) scores[j] = std::tanh(scores[j] / *call.softcap) * *call.softcap;
    }
    const int end = (count + kLanes - 1) / kLanes * kLanes;
    std::fill(scores + count, scores + end, -kInfinity);
    Vec* lanes = (Vec*)scores;
    Vec highest = lanes[0], total = {};
    for (int i = 1; i < end / kLanes; ++i) highest = lanes[i] > highest ? lanes[i] : highest;
    maxima[at] = fold(highest, [](float a, float b) { return std::max(a, b); });
    for (int i = 0; i < end / kLanes; ++i) total += lanes[i] = exponential(lanes[i] - maxima[at]);
    sums[at] = fold(total, [](float a, float b) { return a + b; });
  }

  void attend(size_t index) const {
    const Unit& unit = units[index];
    T* copies = scratch<4, T>(2 * kBlock * size);
    Keys keys{};
    const int64_t first = unit.block * kBlock, end = std::min(first + kBlock, L);
    for (int64_t key = first; key < end; ++key)
      if (call.sees(unit.row, key)) {
        keys.keys[keys.count] = readable(call.k, unit, key, copies + 2 * keys.count * size);
        keys.values[keys.count] = readable(call.v, unit, key, copies + (2 * keys.count + 1) * size);
        ++keys.count;
      }
    // Keys are multiplied kLanes at a time; what the last one yields again is thrown away.
    std::fill(keys.keys + keys.count, keys.keys + kBlock, keys.keys[keys.count - 1]);
    std::fill(keys.values + keys.count, keys.values + kBlock, keys.values[keys.count - 1]);
    const float* q = packed + (unit.row * N + unit.head) * G * size;
    for (int64_t g = 0; g < G; g += kMaxGroup)
      attend_queries(std::min<int64_t>(G - g, kMaxGroup), keys, q + g * size, index * G + g);
  }

  void join_blocks(int64_t pair, int64_t g) const {  // of query g of a row and key head
    const size_t first = starts[pair] * G + g, end = starts[pair + 1] * G + g;
    const float sink = call.sink(pair % N, g);
    float maximum = sink;
    for (size_t at = first; at < end; at += G) maximum = std::max(maximum, maxima[at]);
    float total = call.sinks ? std::exp(sink - maximum) : 0;
    float* joined = scratch<5, float>(size);
    std::fill_n(joined, size, 0.0f);
    for (size_t at = first; at < end; at += G) {
      const float weight = std::exp(maxima[at] - maximum);
      total += weight * sums[at];
      for (int64_t d = 0; d < size; ++d) joined[d] += weight * partial[at * size + d];
    }
    const float factor = first < end ? 1 / total : 0;
    float* y = call.y + (pair * G + g) * D;
    for (int64_t d = 0; d < D; d += kStep) {
      float step[kStep];
      const Vec* halves = (const Vec*)(joined + d);
      store_step<T>(halves[0] * factor, halves[1] * factor, step);
      std::copy_n(step, std::min<int64_t>(kStep, D - d), y + d);
    }
  }

  void run() const {
    pack();
    const int64_t num_units = units.size(), num_queries = B * N * G;
#pragma omp parallel if (num_units * kBlock * G * size > 32768)
    {
      const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
      for (int64_t i = num_units * thread / threads; i < num_units * (thread + 1) / threads; ++i)
        attend(i);
#pragma omp barrier
      const int64_t end = num_queries * (thread + 1) / threads;
      for (int64_t i = num_queries * thread / threads; i < end; ++i) join_blocks(i / G, i % G);
    }
  }
};

void check(const View& q, const View& k, const View& v, const View& allowed,
           const std::optional<View>& sinks) {
  require(q.dtype == aoti_torch_dtype_float32(),
          "attend_decode: q must be float32; convert it with q.float()");
  require(q.dims == 5 && q.sizes[3] == 1, "attend_decode: q must be [B, N, G, 1, D]");
  const auto is = [](const View& tensor, std::initializer_list<int64_t> sizes) {
    return tensor.dims == int64_t(sizes.size()) &&
           std::equal(sizes.begin(), sizes.end(), tensor.sizes);
  };
  const int64_t B = q.sizes[0], N = q.sizes[1], D = q.sizes[4], L = k.dims == 4 ? k.sizes[2] : 0;
  require(is(k, {B, N, L, D}) && is(v, {B, N, L, D}) && k.dtype == v.dtype,
          "attend_decode: k and v must be [B, N, L, D] for q [B, N, G, 1, D], of one dtype");
  require(is(allowed, {B, 1, L}) && allowed.dtype == aoti_torch_dtype_bool(),
          "attend_decode: allowed must be bool [B, 1, L] for keys [B, N, L, D]");
  require(!sinks || (is(*sinks, {N, q.sizes[2]}) && sinks->dtype == aoti_torch_dtype_float32()),
          "attend_decode: sinks must be float32 [N, G] for q [B, N, G, 1, D]");
}

AtenTensorHandle attend_decode(AtenTensorHandle q, AtenTensorHandle k, AtenTensorHandle v,
                               AtenTensorHandle allowed, AtenTensorHandle sinks, double scale,
                               std::optional<double> softcap) {
  Call call{View(q), View(k), View(v), View(allowed)};
  if (sinks) call.sinks = View(sinks);
  check(call.q, call.k, call.v, call.allowed, call.sinks);
  call.scale = scale;
  if (softcap) call.softcap = *softcap;
  const AtenTensorHandle result =
      empty_float32(std::vector<int64_t>(call.q.sizes, call.q.sizes + call.q.dims));
  call.y = static_cast<float*>(View(result).data);
  std::vector<size_t> starts;
  const std::vector<Unit> units = call.plan(starts);
  with_type(call.k,
            "attend_decode: k and v must be float32, bfloat16 or float16; convert with .float()",
            [&](auto* type) {
              Attention<std::remove_pointer_t<decltype(type)>>{call, units, starts}.run();
            });
  return result;
}

Tensor attend_decode_op(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& allowed,
                        const std::optional<Tensor>& sinks, double scale,
                        const std::optional<double>& softcap) {
  return Tensor(attend_decode(q.get(), k.get(), v.get(), allowed.get(),
                              sinks ? sinks->get() : nullptr, scale, softcap));
}

}  // namespace

// What AOTInductor's code calls, as in linear.cpp.
extern "C" AOTITorchError aoti_torch_cpu_attend_decode(AtenTensorHandle q, AtenTensorHandle k,
                                                       AtenTensorHandle v, AtenTensorHandle allowed,
                                                       AtenTensorHandle* sinks, double scale,
                                                       double* softcap, AtenTensorHandle* result) {
  *result = attend_decode(q, k, v, allowed, sinks ? *sinks : nullptr, scale,
                          softcap ? std::optional(*softcap) : std::nullopt);
  return AOTI_TORCH_SUCCESS;
}

STABLE_TORCH_LIBRARY_FRAGMENT(nxdi_cpu, library) {
  library.def(
      "attend_decode(Tensor q, Tensor k, Tensor v, Tensor allowed, Tensor? sinks, float scale, "
      "float? softcap) -> Tensor");
}

#ifndef TORCH_BOX  // torch 2.9
#define TORCH_BOX(function) boxed
static void boxed(StableIValue* stack, uint64_t, uint64_t) {
  const auto tensor = [&](int i) { return to<Tensor>(stack[i]); };
  stack[0] = from(attend_decode_op(tensor(0), tensor(1), tensor(2), tensor(3),
                                   to<std::optional<Tensor>>(stack[4]), to<double>(stack[5]),
                                   to<std::optional<double>>(stack[6])));
}
#endif

STABLE_TORCH_LIBRARY_IMPL(nxdi_cpu, CPU, library) {
  library.impl("attend_decode", TORCH_BOX(&attend_decode_op));
}
