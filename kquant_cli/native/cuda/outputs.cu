// The products of the output side in the bases of their frame, in one launch, by a cluster of 8 blocks a token:
//
//   y = scale * A (p + Q q) + bias,    A = D_1 T,    Q = D_2 T^T        (kquant_cli/bases/coupled.py, transform.cuh)
//
// p and q are what product.cu leaves where its sums stay apart.
#ifndef EMULATED
#include "instructions.cuh"
#endif
#include "transform.cuh"

// sums (tokens, 2, n): p and q; n = 2^bits m, of which at least 2^5; first, second (n,): eps over sqrt(2^bits); dct and
// dct_transposed (m, m). scale (every scale_step) and bias: of the n rows, or NONE. y (tokens, n) of a 16-bit dtype.
KERNEL CLUSTER8 __launch_bounds__(THREADS, 1) kquant_outputs(const float* sums, const float* first, const float* second, const float* dct,
    const float* dct_transposed, const void* scale, int scale_dtype, int scale_step, const void* bias, int bias_dtype, u16* y, int y_dtype,
    int n, int bits, int m) {
  SHARED_MEMORY(sm);
  const int tid = threadIdx.x, rank = blockIdx.x & 7, token = blockIdx.x >> 3, E = n >> 3;
  float* V = (float*)sm;
  float* W = V + E;
  float* C = W + E;
  float* Ct = C + m * m;
  let_next_begin();
  if (m > 1)
    for (int i = tid; i < m * m; i += THREADS) { C[i] = dct[i]; Ct[i] = dct_transposed[i]; }
  wait_for_previous();
  const float* p = sums + 2ll * token * n;
  const float* q = p + n;
  load_eighth(V, E, rank, [&](int j) { return q[j]; });
  hadamard(V, E, m, bits - 3);
  times_matrix(V, W, C, E, m);
  for (int i = tid; i < E; i += THREADS) V[i] = p[rank * E + i] + W[i] * second[rank * E + i];
  __syncthreads();
  times_matrix(V, W, Ct, E, m);
  hadamard(W, E, m, bits - 3);
  cluster_sync();
  const int pairs = E / 2, e = 2 * (pairs * rank / 8 + tid);
  if (e < 2 * (pairs * (rank + 1) / 8)) {
    float2 v[8];
    read_eighths(v, W, e);
    across(v);
    auto output = [&](float sum, int row) {
      const float factor = scale_dtype == NONE ? first[row] : first[row] * number(scale, scale_dtype, (long long)row * scale_step);
      return (u32)rounded(factor * sum + (bias_dtype == NONE ? 0.f : number(bias, bias_dtype, row)), y_dtype);
    };
#pragma unroll
    for (int c = 0; c < 8; ++c)
      *(u32*)(y + (long long)token * n + c * E + e) = output(v[c].x, c * E + e) | output(v[c].y, c * E + e + 1) << 16;
  }
  cluster_sync();  // nobody's memory goes while it is read
}
