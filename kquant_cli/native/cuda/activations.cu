// The activations in the bases of a frame, in one launch, by a cluster of 8 blocks a token (transform.cuh):
//
//   a = S T^T (eps_1 * x / d),    b = S T (eps_2 * T^T (eps_1 * x / d))        (kquant_cli/bases/coupled.py)
//
// SPLIT: a alone, which both columns of the codebook are multiplied with; without signs eps_1 it is S x / d.
//
// `digits` 0: a and b are written in x's dtype. Else as product.cu reads them, for words of so many digits (2, 4 or 8):
// 16-bit integers, as two bytes (limbs, the high one first), times tok[token] = (largest |a|, |b|) / 32512. `digits` below 0:
// for words of -digits (1, 2, 4 or 8), in float16, times tok[token] = (largest |a|, |b|) / 256.
#ifndef EMULATED
#include "instructions.cuh"
#endif
#include "transform.cuh"

constexpr int MOST = 32512, MOST_FLOAT = 256;  // 32512 = 127 * 256: the low limb's rounding stays in a byte

DEVICE u32 magnitude(float v) { return float_to_bits(v) & 0x7fffffffu; }
DEVICE u32 larger(u32 a, u32 b) { return a > b ? a : b; }

DEVICE u32 bytes(int a, int b, int c, int d) { return (a & 255) | (b & 255) << 8 | (c & 255) << 16 | (u32)(d & 255) << 24; }

// The limbs of v[c] = the numbers e, e + 1 of each eighth, times `inverse`; word t has DIGITS digits, and
// digit i of it is number t % E of eighth i (8 / DIGITS) + t / E. TERMS: 2 for a and b, 1 for a alone.
template <int DIGITS, int TERMS> DEVICE void write_limbs(const float2* v, float inverse, int e, int E, int is_b, u32* act, int token, int T) {
  constexpr int SELECTORS = DIGITS / 2, PER = 8 / DIGITS;
#pragma unroll
  for (int r = 0; r < PER; ++r) {
    const int t = r * E + e;
#pragma unroll
    for (int s = 0; s < SELECTORS; ++s) {
      const int d0 = DIGITS == 4 ? s : 2 * s, d1 = DIGITS == 4 ? s + 2 : 2 * s + 1;
      const float2 p = v[d0 * PER + r], o = v[d1 * PER + r];
      const int w0 = round_int(p.x * inverse), w1 = round_int(o.x * inverse), w2 = round_int(p.y * inverse), w3 = round_int(o.y * inverse);
      u32* at = act + (((((t >> 6) * 4 + (t >> 2 & 3)) * SELECTORS + s) * 2 * T + 2 * token) * 8 + (t >> 4 & 3) * 2 + (t >> 1 & 1)) * TERMS + is_b;
      at[0] = bytes(w0 + 128 >> 8, w1 + 128 >> 8, w2 + 128 >> 8, w3 + 128 >> 8);
      at[8 * TERMS] = bytes(w0, w1, w2, w3);
    }
  }
}

// The same in float16, a or b of a pair (a, b).
template <int DIGITS, int TERMS> DEVICE void write_floats(const float2* v, float inverse, int e, int E, int is_b, u16* act, int token, int T) {
  constexpr int PER = 8 / DIGITS;
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    const int t = c % PER * E + e, s = c / PER;
    u16* at = act + (((((t >> 6) * 4 + (t >> 2 & 3)) * DIGITS + s) * T + token) * 16 + (t >> 4 & 3) * 4 + (t & 3)) * TERMS + is_b;
    at[0] = float_to_half(v[c].x * inverse);
    at[TERMS] = float_to_half(v[c].y * inverse);
  }
}

// Zeros behind the words, up to a multiple of 64, for this token, whose `limbs` columns are beside each other.
template <int TERMS> DEVICE void write_zeros(u32* act, int token, int T, int words, int selectors, int limbs) {
  const int behind = ((words + 63) / 64 * 64 - words) / 4, numbers = 2 * TERMS, columns = numbers * limbs;  // groups of four words
  for (int i = threadIdx.x; i < behind * selectors * columns; i += THREADS) {
    const int t = words + i / (selectors * columns) * 4, s = i / columns % selectors, limb = i / numbers % limbs, e = i % numbers;
    act[(((((t >> 6) * 4 + (t >> 2 & 3)) * selectors + s) * limbs * T + limbs * token + limb) * 4 + (t >> 4 & 3)) * numbers + e] = 0;
  }
}

// x (tokens, n), n = 2^bits m, of which at least 2^5; first, second (n,): eps over sqrt(2^bits), without first the identity;
// dct, dct_transposed (m, m).
template <bool SPLIT>
DEVICE void activations(const void* x, int dtype, const void* channel_scale, int channel_dtype, const float* first, const float* second,
                        const float* dct, const float* dct_transposed, const void* column_scale, int column_dtype, int digits, u16* a, u16* b,
                        u32* act, float* tok, int n, int bits, int m, int T) {
  constexpr int TERMS = SPLIT ? 1 : 2;
  SHARED_MEMORY(sm);
  const int tid = threadIdx.x, lane = tid & 31, rank = blockIdx.x & 7, token = blockIdx.x >> 3, E = n >> 3;
  float* V = (float*)sm;
  float* A = V + E;
  float* B = A + E;
  u32* tops = (u32*)(B + E);  // of the 16 warps of each block
  float* C = (float*)(tops + 128);
  float* Ct = C + m * m;
  let_next_begin();
  if (m > 1)
    for (int i = tid; i < m * m; i += THREADS) { C[i] = dct[i]; Ct[i] = dct_transposed[i]; }
  wait_for_previous();
  auto scaled = [&](int j, float sign) {
    const float v = number(x, dtype, (long long)token * n + j) * sign;
    return channel_dtype == NONE ? v : v / number(channel_scale, channel_dtype, j);
  };
  if (SPLIT && !first) {
    for (int i = tid; i < E; i += THREADS) A[i] = scaled(rank * E + i, 1.f);
  } else {
    load_eighth(V, E, rank, [&](int j) { return scaled(j, first[j]); });
    hadamard(V, E, m, bits - 3);
    times_matrix(V, A, C, E, m);
  }
  if (!SPLIT) {
    for (int i = tid; i < E; i += THREADS) V[i] = A[i] * second[rank * E + i];
    __syncthreads();
    times_matrix(V, B, Ct, E, m);
    hadamard(B, E, m, bits - 3);
  }
  cluster_sync();
  const int is_b = tid >= THREADS / 2, pairs = E / 2, p0 = pairs * rank / 8, e = 2 * (p0 + (tid & (THREADS / 2 - 1)));
  const bool mine = e < 2 * (pairs * (rank + 1) / 8) && is_b < TERMS;
  float2 v[8];
  u32 top = 0;  // the largest magnitude, in bits: of these a NaN is the largest, and is not lost
#pragma unroll
  for (int c = 0; c < 8; ++c) v[c] = {0.f, 0.f};
  if (mine) {
    read_eighths(v, is_b ? B : A, e);
    if (is_b) across(v);
    if (column_dtype != NONE)
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        v[c].x *= number(column_scale, column_dtype, c * E + e);
        v[c].y *= number(column_scale, column_dtype, c * E + e + 1);
      }
#pragma unroll
    for (int c = 0; c < 8; ++c) top = larger(top, larger(magnitude(v[c].x), magnitude(v[c].y)));
  }
#pragma unroll
  for (int s = 16; s; s /= 2) top = larger(top, shuffle_xor(top, s));
  if (lane < 8) remote_store(tops + rank * 16 + (tid >> 5), lane, top);
  cluster_sync();  // nobody reads another block's memory after this
  if (digits == 0) {
    if (mine)
#pragma unroll
      for (int c = 0; c < 8; ++c)
        *(u32*)((is_b ? b : a) + (long long)token * n + c * E + e) = rounded(v[c].x, dtype) | (u32)rounded(v[c].y, dtype) << 16;
    return;
  }
  top = larger(larger(tops[lane], tops[lane + 32]), larger(tops[lane + 64], tops[lane + 96]));
#pragma unroll
  for (int s = 16; s; s /= 2) top = larger(top, shuffle_xor(top, s));
  const float largest = bits_to_float(top), most = digits > 0 ? MOST : MOST_FLOAT, inverse = largest > 0.f ? most / largest : 0.f;
  if (rank == 0) {
    if (tid == 0) tok[token] = largest / most;
    if (digits > 0) write_zeros<TERMS>(act, token, T, n / digits, digits / 2, 2);
    else write_zeros<TERMS>(act, token, T, n / -digits, -digits, 1);
  }
  if (mine) {
    if (digits == 2) write_limbs<2, TERMS>(v, inverse, e, E, is_b, act, token, T);
    if (digits == 4) write_limbs<4, TERMS>(v, inverse, e, E, is_b, act, token, T);
    if (digits == 8) write_limbs<8, TERMS>(v, inverse, e, E, is_b, act, token, T);
    if (digits == -1) write_floats<1, TERMS>(v, inverse, e, E, is_b, (u16*)act, token, T);
    if (digits == -2) write_floats<2, TERMS>(v, inverse, e, E, is_b, (u16*)act, token, T);
    if (digits == -4) write_floats<4, TERMS>(v, inverse, e, E, is_b, (u16*)act, token, T);
    if (digits == -8) write_floats<8, TERMS>(v, inverse, e, E, is_b, (u16*)act, token, T);
  }
}

#ifndef EMULATED
KERNEL CLUSTER8 __launch_bounds__(THREADS, 1) kquant_activations(const void* x, int dtype, const void* channel_scale, int channel_dtype,
    const float* first, const float* second, const float* dct, const float* dct_transposed, const void* column_scale, int column_dtype, int digits, u16* a, u16* b, u32* act, float* tok,
    int n, int bits, int m, int T) {
  activations<THE_SPLIT>(x, dtype, channel_scale, channel_dtype, first, second, dct, dct_transposed, column_scale, column_dtype, digits, a, b, act, tok, n, bits, m, T);
}
#endif
