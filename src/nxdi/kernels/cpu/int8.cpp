// nxdi_cpu::int8_linear(x, weight): the exact integers y = x @ weight.T of 8-bit x and weight.
//
//   x       [..., K] int8, the last dimension contiguous
//   weight  [N, K] int8, rows contiguous, any alignment (a mapped file)
//   result  [..., N] int32: exact for K up to 2**31 / 2**14 = 131072
//
// Four weight rows stay in L1 while all rows of x pass over them. The compiler turns the loop over k
// into products of pairs that are added as 32-bit integers.

#include "vectors.h"

namespace {

constexpr int kRows = 4;
constexpr int64_t kMaxK = 131072;

int32_t multiply(const int8_t* w, const int8_t* x, int64_t K) {
  int32_t sum = 0;
  for (int64_t k = 0; k < K; ++k) sum += int32_t(x[k]) * int32_t(w[k]);
  return sum;
}

AtenTensorHandle int8_of(AtenTensorHandle x_handle, AtenTensorHandle weight_handle) {
  const View x(x_handle), weight(weight_handle);
  require(x.dtype == aoti_torch_dtype_int8() && weight.dtype == aoti_torch_dtype_int8(),
          "int8_linear: x and weight must be int8");
  require(x.dims > 0 && weight.dims == 2 && x.sizes[x.dims - 1] == weight.sizes[1],
          "int8_linear: x must be [..., K] and weight [N, K] with the same K; check the sizes");
  const int64_t N = weight.sizes[0], K = weight.sizes[1];
  require(K <= kMaxK, "int8_linear: K must be at most 131072, or sums leave 32 bits");
  require((weight.strides[1] == 1 && x.strides[x.dims - 1] == 1) || K <= 1,
          "int8_linear: rows of x and weight must be contiguous; use .contiguous()");
  std::vector<int64_t> sizes(x.sizes, x.sizes + x.dims);
  sizes.back() = N;
  int64_t M = 1;
  for (int64_t d = 0; d + 1 < x.dims; ++d) M *= x.sizes[d];
  const AtenTensorHandle result = empty_of(sizes, aoti_torch_dtype_int32());
  int32_t* y = static_cast<int32_t*>(View(result).data);
  const int8_t* w = static_cast<const int8_t*>(weight.data);
  const int64_t stride = weight.strides[0];
#pragma omp parallel for if (M * N * K > 32768)
  for (int64_t n = 0; n < N; n += kRows)
    for (int64_t m = 0; m < M; ++m) {
      const int8_t* row = row_of<int8_t>(x, m);
      for (int64_t r = n; r < std::min(N, n + kRows); ++r)
        y[m * N + r] = multiply(w + r * stride, row, K);
    }
  return result;
}

Tensor int8_op(const Tensor& x, const Tensor& weight) {
  return Tensor(int8_of(x.get(), weight.get()));
}

}  // namespace

extern "C" AOTITorchError aoti_torch_cpu_int8_linear(AtenTensorHandle x, AtenTensorHandle weight,
                                                     AtenTensorHandle* result) {
  *result = int8_of(x, weight);
  return AOTI_TORCH_SUCCESS;
}

STABLE_TORCH_LIBRARY_FRAGMENT(nxdi_cpu, library) {
  library.def("int8_linear(Tensor x, Tensor weight) -> Tensor");
}

#ifndef TORCH_BOX  // torch 2.9
#define TORCH_BOX(function) boxed
static void boxed(StableIValue* stack, uint64_t, uint64_t) {
  stack[0] = from(int8_op(to<Tensor>(stack[0]), to<Tensor>(stack[1])));
}
#endif

STABLE_TORCH_LIBRARY_IMPL(nxdi_cpu, CPU, library) {
  library.impl("int8_linear", TORCH_BOX(&int8_op));
}
