// The transform of bases/coupled.py in shared memory, by a cluster of 8 blocks a vector: what activations.cu and outputs.cu
// share.
//
//   T = H (x) C,    H Sylvester's of order 2^bits, C the DCT of order m; H is without its 1 / sqrt(2^bits)
//
// The index of a vector is i = i_H m + i_C. Block c holds its c-th eighth (E numbers), so H = H_8 (blocks) (x) H_rest: H_8
// of a first transform while loading, as every block reads all of the vector and keeps its own combination of the eighths
// (`load_eighth`); the rest in the block, by butterflies and a product with C; H_8 of a second where the results are read
// (`read_eighths`, `across`): block c takes pairs of numbers of all eight blocks through distributed shared memory.
#pragma once
#include "numbers.cuh"

constexpr int THREADS = 512;

// The combination of the eighths of v(0), v(1), ... that this block has in H_8.
template <class Numbers> DEVICE void load_eighth(float* to, int E, int rank, Numbers v) {
  for (int i = threadIdx.x; i < E; i += THREADS) {
    float z = 0.f;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const float one = v(c * E + i);
      z += bit_count(rank & c) & 1 ? -one : one;
    }
    to[i] = z;
  }
  __syncthreads();
}

// H of order 2^BITS on the bits of i_H from `low` on, of v (E numbers).
template <int BITS> DEVICE void butterflies(float* v, int E, int m, int low) {
  const int inner = m << low;
  for (int i = threadIdx.x; i < E >> BITS; i += THREADS) {
    float* at = v + (i / inner << BITS) * inner + i % inner;
    float z[1 << BITS];
#pragma unroll
    for (int r = 0; r < 1 << BITS; ++r) z[r] = at[r * inner];
#pragma unroll
    for (int s = 1; s < 1 << BITS; s *= 2)
#pragma unroll
      for (int r = 0; r < 1 << BITS; ++r)
        if (!(r & s)) { const float sum = z[r] + z[r + s]; z[r + s] = z[r] - z[r + s]; z[r] = sum; }
#pragma unroll
    for (int r = 0; r < 1 << BITS; ++r) at[r * inner] = z[r];
  }
  __syncthreads();
}

DEVICE void hadamard(float* v, int E, int m, int bits) {
  int low = 0;
  for (; bits - low >= 3; low += 3) butterflies<3>(v, E, m, low);
  if (bits - low == 2) butterflies<2>(v, E, m, low);
  if (bits - low == 1) butterflies<1>(v, E, m, low);
}

// out[h m + k] = sum_j v[h m + j] matrix[j m + k], four rows h at a time; without a matrix a copy.
DEVICE void times_matrix(const float* v, float* out, const float* matrix, int E, int m) {
  if (m == 1) {
    for (int i = threadIdx.x; i < E; i += THREADS) out[i] = v[i];
  } else {
    for (int i = threadIdx.x; i < E / 4; i += THREADS) {
      const int k = i % m, at = i / m * 4 * m;
      float z[4] = {0.f, 0.f, 0.f, 0.f};
      for (int j = 0; j < m; ++j) {
        const float c = matrix[j * m + k];
#pragma unroll
        for (int r = 0; r < 4; ++r) z[r] += v[at + r * m + j] * c;
      }
#pragma unroll
      for (int r = 0; r < 4; ++r) out[at + r * m + k] = z[r];
    }
  }
  __syncthreads();
}

// The numbers e, e + 1 of each block's `from`, and H_8 on them.
DEVICE void read_eighths(float2* v, const float* from, int e) {
#pragma unroll
  for (int c = 0; c < 8; ++c) v[c] = remote_load(from + e, c);
}
DEVICE void across(float2* v) {
#pragma unroll
  for (int s = 1; s < 8; s *= 2)
#pragma unroll
    for (int c = 0; c < 8; ++c)
      if (!(c & s)) {
        const float2 p = v[c], o = v[c + s];
        v[c] = {p.x + o.x, p.y + o.y};
        v[c + s] = {p.x - o.x, p.y - o.y};
      }
}
