// Products with packed codes for 1, 2, 4 or 8 tokens, whose codebook is whole numbers of one byte times a step:
//
//   y[token][row] = scale[row] step sum_j (u[code] a_j + v[code] b_j) + bias[row]
//
// A look-up is one PRMT, which picks four bytes out of the eight of two registers by the low three bits of four nibbles;
// the products are int8 mma. The activations are 16-bit integers times a scale of the token's, in two bytes (limbs), so
// that column 2 token + limb of B is the high (0) or low (1) byte: sums are exact, whatever their order.
//
//   KIND 0  16 levels. The nibble's bit 3 turns a byte into its sign: prmt(P, y) is P's entry, or 0 / -1 where bit 3 is set,
//           prmt(N, y ^ 8..8) the other way round, and both go into mma with the same activations: the tables are
//           corrected for the -1 (runtime/products/integer_codebook.py). 2 look-ups for u, 2 for v, 4 mma.
//   KIND 1  16 levels, u of codes i and i + 8 the same: u = prmt(U, y & 7..7), v = prmt(P, y) + prmt(Q, y & 7..7). 3 mma.
//   KIND 2   4 levels: u = prmt(U, y & 3..3), v likewise, digits 0 and 2 of a byte; then of y >> 2 digits 1 and 3.
//   KIND 3   8 levels, from three planes of bytes: u = prmt(U, selector), four selectors of two digits each.
//
// A selector is what two digits of four neighbouring words t .. t + 3 are looked up by, in two halves. The activations
// stand as uint4 [t / 64][t / 4 % 4][selector][column][t / 16 % 4]: a of (first digit of t, second digit of t, first of
// t + 1, second of t + 1), b of these, then the same of t + 2 and t + 3; zeros behind the row (activations.cu).
//
// A block has whole tiles of ROWS rows, and all columns of them, so that it alone writes its part of y. Its warps take
// steps of 64 words in turn, from a ring in shared memory that each lane fills and reads by itself. Activations that
// do not fit in shared memory come in `parts`; the sums stay.
#ifndef EMULATED
#include "instructions.cuh"
#endif
#include "numbers.cuh"

template <int KIND> struct Form {
  static constexpr int SELECTORS = KIND < 2 ? 1 : KIND == 2 ? 2 : 4, PLANES = KIND == 3 ? 3 : 1;
  static constexpr int TILES = KIND == 3 ? 1 : 2, STAGES = KIND == 3 ? 3 : 4, WARPS = 16;
};

// The selector `s` of four words: of one register for 4 and 16 levels, of three planes for 8.
template <int KIND> DEVICE u32 selector(const u32* d, int s) {
  if (KIND < 2) return d[0];
  if (KIND == 2) return (s == 0 ? d[0] : d[0] >> 2) & 0x33333333u;
  if (s == 0) return (d[0] & 0x07070707u) | (d[0] << 1 & 0x70707070u);
  if (s == 1) return (d[0] >> 6 & 0x03030303u) | (d[1] << 2 & 0x04040404u) | (d[1] << 3 & 0x70707070u);
  if (s == 2) return (d[1] >> 4 & 0x07070707u) | (d[1] >> 3 & 0x10101010u) | (d[2] << 5 & 0x60606060u);
  return (d[2] >> 2 & 0x07070707u) | (d[2] >> 1 & 0x70707070u);
}

DEVICE u32 word_of(const uint4& x, int w) { return w == 0 ? x.x : w == 1 ? x.y : w == 2 ? x.z : x.w; }

// table: 8 words, two a look-up (KIND 0: P and N of u, of v; 1: U, unused, P, Q; 2 and 3: U, unused, V, unused).
// tok: the scale of each of T tokens, of which `tokens` are wanted. scale (every scale_step) and bias: of rows, or NONE.
template <int KIND, int T>
DEVICE void product(const unsigned char* codes, const u32* table, const uint4* act, const float* tok, const void* scale,
                    int scale_dtype, int scale_step, const void* bias, int bias_dtype, u16* y, int y_dtype, int rows,
                    int words, int parts, int tokens, float step) {
  using F = Form<KIND>;
  constexpr int S = F::SELECTORS, PLANES = F::PLANES, MT = F::TILES, ST = F::STAGES, NW = F::WARPS;
  constexpr int ROWS = 16 * MT, COLS = 2 * T, NT = (COLS + 7) / 8, PIECES = PLANES * 2 * MT, SLOT = PIECES * 512,
                ACT = S * 256 * COLS;  // bytes of a step's activations
  SHARED_MEMORY(sm);
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
  saddr ring = shared(sm) + 128 + warp * ST * SLOT + lane * 16;
  IN_REGISTER(ring);
  const int steps = (words + 63) / 64, longest = (steps + parts - 1) / parts;
  uint4* acts = (uint4*)(sm + 128 + NW * ST * SLOT);
  int* sums = (int*)((unsigned char*)acts + longest * ACT);  // [row][column of B]
  const int all = (rows + ROWS - 1) / ROWS;
  const int tile0 = (int)((long long)all * blockIdx.x / gridDim.x), tiles = (int)((long long)all * (blockIdx.x + 1) / gridDim.x) - tile0;
  if (tid == 0) barrier_init(sm);
  let_next_begin();
  const u32 t0 = table[0], t1 = table[1], t2 = table[2], t3 = table[3], t4 = table[4], t5 = table[5], t6 = table[6], t7 = table[7];
  for (int i = tid; i < tiles * ROWS * COLS; i += 32 * NW) sums[i] = 0;

  int c[MT][NT][2][4];  // two sums each: shorter chains of mma
#pragma unroll
  for (int t = 0; t < MT; ++t)
#pragma unroll
    for (int nt = 0; nt < NT; ++nt)
#pragma unroll
      for (int e = 0; e < 4; ++e) c[t][nt][0][e] = c[t][nt][1][e] = 0;
  auto flush = [&](int tile) {
    int* at = sums + (tile * ROWS + g) * COLS + 2 * q;
#pragma unroll
    for (int t = 0; t < MT; ++t)
#pragma unroll
      for (int nt = 0; nt < NT; ++nt)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (COLS >= 8 || 2 * q + (e & 1) < COLS) atomicAdd(at + (16 * t + 8 * (e >> 1)) * COLS + nt * 8 + (e & 1), c[t][nt][0][e] + c[t][nt][1][e]);
          c[t][nt][0][e] = c[t][nt][1][e] = 0;
        }
  };
  uint4 b[NT];
#pragma unroll
  for (int nt = 0; nt < NT; ++nt) b[nt] = {0, 0, 0, 0};
  saddr myacts = shared(acts) + ((g & (COLS - 1) & 7) * 4 + q) * 16;
  IN_REGISTER(myacts);
  const long long line = (long long)PLANES * words, lines8 = 8 * line;

#pragma unroll 1
  for (int part = 0; part < parts; ++part) {
    const int c0 = steps * part / parts, L = steps * (part + 1) / parts - c0, end = tiles * L;
    const int count = end > warp ? (end - warp + NW - 1) / NW : 0;
    int itile = warp / L, icol = warp - itile * L, left = count, irows, ibyte;  // the next to load
    const unsigned char* src;
    auto place = [&]() {
      irows = rows - (tile0 + itile) * ROWS - g;
      ibyte = (c0 + icol) * 64 + q * 16;
      src = codes + ((tile0 + itile) * ROWS + g) * line + ibyte;
    };
    place();
    saddr to = ring;
    auto issue = [&]() {
      if (left > 0) {
        const unsigned char* from = src;
#pragma unroll
        for (int k = 0; k < 2 * MT; ++k) {
#pragma unroll
          for (int p = 0; p < PLANES; ++p) cp_async(to + (k * PLANES + p) * 512, from + (long long)p * words, ibyte < words && 8 * k < irows);
          from += lines8;
        }
        --left;
        icol += NW; ibyte += NW * 64; src += NW * 64;
        if (icol >= L) {
          do { icol -= L; ++itile; } while (icol >= L);
          place();
        }
      }
      cp_commit();
      to = to == ring + (ST - 1) * SLOT ? ring : to + SLOT;
    };
#pragma unroll
    for (int s = 0; s < ST - 1; ++s) issue();
    __syncthreads();  // nobody reads the part before any more; the barrier is made, and the sums are zeros
    if (part == 0) wait_for_previous();
    if (tid == 0) bulk_load(acts, (const unsigned char*)act + (long long)c0 * ACT, L * ACT, sm);
    int tile = warp / L, col = warp - tile * L;  // the one to decode
    saddr from = ring, ap = myacts + col * ACT;
    barrier_wait(sm, part & 1);
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      cp_wait<ST - 2>();
      issue();
      uint4 x[PIECES];
#pragma unroll
      for (int k = 0; k < PIECES; ++k) x[k] = lds(from + k * 512);
#pragma unroll
      for (int w = 0; w < 4; ++w)
#pragma unroll
        for (int s = 0; s < S; ++s) {
#pragma unroll
          for (int nt = 0; nt < NT; ++nt) lds_if<COLS>(b[nt], ap + (w * S + s) * COLS * 64 + nt * 512, g);
#pragma unroll
          for (int t = 0; t < MT; ++t) {
            u32 A[2][2][4];  // row g, g + 8; half; look-up
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              u32 planes[PLANES];
#pragma unroll
              for (int p = 0; p < PLANES; ++p) planes[p] = word_of(x[(2 * t + r) * PLANES + p], w);
              const u32 d = selector<KIND>(planes, s), e = KIND == 0 ? d ^ 0x88888888u : d & 0x77777777u;
#pragma unroll
              for (int h = 0; h < 2; ++h) {
                const u32 dd = h ? d >> 16 : d, ee = h ? e >> 16 : e;
                if (KIND == 0) { A[r][h][0] = prmt(t0, t1, dd); A[r][h][1] = prmt(t2, t3, ee); A[r][h][2] = prmt(t4, t5, dd); A[r][h][3] = prmt(t6, t7, ee); }
                if (KIND == 1) { A[r][h][0] = prmt(t0, t1, ee); A[r][h][2] = prmt(t4, t5, dd); A[r][h][3] = prmt(t6, t7, ee); }
                if (KIND >= 2) { A[r][h][0] = prmt(t0, t1, dd); A[r][h][2] = prmt(t4, t5, dd); }
              }
            }
#pragma unroll
            for (int nt = 0; nt < NT; ++nt) {
              int* s0 = c[t][nt][0];
              int* s1 = c[t][nt][1];
              imma16832(s0, A[0][0][0], A[1][0][0], A[0][0][2], A[1][0][2], b[nt].x, b[nt].y);
              imma16832(s1, A[0][1][0], A[1][1][0], A[0][1][2], A[1][1][2], b[nt].z, b[nt].w);
              if (KIND == 0) {
                imma16832(s0, A[0][0][1], A[1][0][1], A[0][0][3], A[1][0][3], b[nt].x, b[nt].y);
                imma16832(s1, A[0][1][1], A[1][1][1], A[0][1][3], A[1][1][3], b[nt].z, b[nt].w);
              } else if (KIND == 1) {
                imma16832(w & 1 ? s1 : s0, A[0][0][3], A[1][0][3], A[0][1][3], A[1][1][3], b[nt].y, b[nt].w);
              }
            }
          }
        }
      from = from == ring + (ST - 1) * SLOT ? ring : from + SLOT;
      col += NW; ap += NW * ACT;
      if (col >= L || i + 1 == count) {
        flush(tile);
        while (col >= L) { col -= L; ++tile; }
        ap = myacts + col * ACT;
      }
    }
  }
  __syncthreads();
  for (int i = tid; i < tiles * ROWS; i += 32 * NW) {
    const int row = tile0 * ROWS + i;
    if (row < rows) {
      const float factor = scale_dtype == NONE ? step : step * number(scale, scale_dtype, (long long)row * scale_step);
      const float added = bias_dtype == NONE ? 0.f : number(bias, bias_dtype, row);
      for (int token = 0; token < tokens; ++token) {
        const int* p = sums + i * COLS + 2 * token;
        y[(long long)token * rows + row] = rounded(factor * (tok[token] * (256.f * (float)p[0] + (float)p[1])) + added, y_dtype);
      }
    }
  }
}

#ifndef EMULATED
KERNEL __launch_bounds__(32 * Form<THE_KIND>::WARPS, 1) kquant_product(const unsigned char* codes, const u32* table, const uint4* act, const float* tok, const void* scale,
    int scale_dtype, int scale_step, const void* bias, int bias_dtype, u16* y, int y_dtype, int rows, int words, int parts, int tokens, float step) {
  product<THE_KIND, TOKENS>(codes, table, act, tok, scale, scale_dtype, scale_step, bias, bias_dtype, y, y_dtype, rows, words, parts, tokens, step);
}
#endif
