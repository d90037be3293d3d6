// Products with packed codes of 1 to 8 bits for 1, 2, 4 or 8 tokens:
//
//   y[token][row] = scale[row] step sum_j (u[code] a_j + v[code] b_j) + bias[row]
//
// SPLIT: u and v meet the same activations, and their sums stay apart, for outputs.cu:
//
//   p[token][row] = step sum_j u[code] a_j,    q[token][row] = step sum_j v[code] a_j
//
// Codebooks of whole numbers of one byte, times the step: a look-up is one PRMT, which picks four bytes out of the eight
// of two registers by the low three bits of four nibbles; the products are int8 mma. The activations are 16-bit integers
// times a scale of the token's, in two bytes (limbs): column 2 token + limb of B is the high (0) or low (1) byte. Sums
// are exact, whatever their order.
//
//   KIND 0  16 levels. The nibble's bit 3 turns a byte into its sign: prmt(P, y) is P's entry, or 0 / -1 where bit 3 is set,
//           prmt(N, y ^ 8..8) the other way round, and both go into mma with the same activations: the tables are
//           corrected for the -1 (runtime/products/look_up.py). 2 look-ups for u, 2 for v, 4 mma.
//   KIND 1  16 levels, u of codes i and i + 8 the same: u = prmt(U, y & 7..7), v = prmt(P, y) + prmt(Q, y & 7..7). 3 mma.
//   KIND 2   4 levels: u = prmt(U, y & 3..3), v likewise, digits 0 and 2 of a byte; then of y >> 2 digits 1 and 3.
//   KIND 3   8 levels, from three planes of bytes: u = prmt(U, selector), four selectors of two digits each.
//
// Other codebooks (KIND 16 + bits): a look-up is a load from shared memory, where each lane has a copy of the table of
// (u, v) in float16, step the largest of them; the products are float16 mma of (u, v) with (a, b), times a scale of the
// token's. Column `token` of B; a selector is one digit of four words. Warps add their sums as 64-bit integers of 2^-32.
//
// A selector is what two digits of four neighbouring words t .. t + 3 are looked up by, in two halves. The activations
// stand as uint4 [t / 64][t / 4 % 4][selector][column][t / 16 % 4]: a of (first digit of t, second digit of t, first of
// t + 1, second of t + 1), b of these, then the same of t + 2 and t + 3; in float16 (a, b) of t, of t + 1, t + 2, t + 3;
// zeros behind the row (activations.cu). SPLIT: as uint2, without b; in float16 a of t, t + 1 and of t + 2, t + 3.
//
// A block has whole tiles of ROWS rows, and all columns of them, so that it alone writes its part of y. Its warps take
// steps of 64 words in turn, from a ring in shared memory that each lane fills and reads by itself. Activations that
// do not fit in shared memory come in `parts`; the sums stay.
#ifndef EMULATED
#include "instructions.cuh"
#endif
#include "numbers.cuh"

constexpr int TABLE = 16;  // KINDs from here on look up in shared memory
template <bool> struct Sums { typedef int One, Total; };
template <> struct Sums<true> { typedef float One; typedef long long Total; };

template <bool SPLIT> struct Numbers { typedef uint4 Type; };  // of four words, for a selector, as above
template <> struct Numbers<true> { typedef uint2 Type; };

template <int KIND> struct Form {
  static constexpr bool FLOATS = KIND > TABLE;
  static constexpr int BITS = FLOATS ? KIND - TABLE : KIND < 2 ? 4 : KIND;
  static constexpr int PLANES = BITS & 1 ? BITS == 1 ? 1 : BITS : BITS == 6 ? 3 : 1, DIGITS = 8 * PLANES / BITS;  // of a word
  static constexpr int SELECTORS = FLOATS ? DIGITS : DIGITS / 2, ENTRIES = FLOATS ? 1 << BITS : 0;
  static constexpr int TILES = PLANES == 1 ? 2 : 1, STAGES = PLANES == 1 ? 4 : 3, WARPS = PLANES > 3 ? 8 : 16;
  typedef typename Sums<FLOATS>::One Sum;
  typedef typename Sums<FLOATS>::Total Total;
};

DEVICE constexpr u32 four_bytes(u32 byte) { return byte * 0x01010101u; }

// Digit `s` of four words, each in a byte of its own; a word's bytes are in as many planes.
template <int BITS> DEVICE u32 digit(const u32* planes, int s) {
  const int at = BITS * s / 8, low = BITS * s % 8, there = 8 - low;  // bits of it that are in the first plane
  u32 code = planes[at] >> low & four_bytes((1 << (BITS < there ? BITS : there)) - 1);
  if (BITS > there) code |= planes[at + 1] << there & four_bytes((1 << BITS) - (1 << there));
  return code;
}

// The selector `s` of four words: of one register for 4 and 16 levels, of three planes for 8.
template <int KIND> DEVICE u32 selector(const u32* d, int s) {
  if (Form<KIND>::FLOATS) return digit<Form<KIND>::BITS>(d, s);
  if (KIND < 2) return d[0];
  if (KIND == 2) return (s == 0 ? d[0] : d[0] >> 2) & 0x33333333u;
  if (s == 0) return (d[0] & 0x07070707u) | (d[0] << 1 & 0x70707070u);
  if (s == 1) return (d[0] >> 6 & 0x03030303u) | (d[1] << 2 & 0x04040404u) | (d[1] << 3 & 0x70707070u);
  if (s == 2) return (d[1] >> 4 & 0x07070707u) | (d[1] >> 3 & 0x10101010u) | (d[2] << 5 & 0x60606060u);
  return (d[2] >> 2 & 0x07070707u) | (d[2] >> 1 & 0x70707070u);
}

DEVICE int total(int sum) { return sum; }
DEVICE long long total(float sum) { return round_long(sum * 4294967296.f); }
DEVICE float value(const int* p) { return 256.f * (float)p[0] + (float)p[1]; }
DEVICE float value(const long long* p) { return (float)((double)p[0] / 4294967296.); }

DEVICE u32 word_of(const uint4& x, int w) { return w == 0 ? x.x : w == 1 ? x.y : w == 2 ? x.z : x.w; }

// table: 8 words, two a look-up (KIND 0: P and N of u, of v; 1: U, unused, P, Q; 2 and 3: U, unused, V, unused), or an
// entry for each code.
// tok: the scale of each of T tokens, of which `tokens` are wanted. scale (every scale_step) and bias: of rows, or NONE.
// y (tokens, rows) of a 16-bit dtype; SPLIT: (tokens, 2, rows), float32, without scale and bias.
template <int KIND, int T, bool SPLIT>
DEVICE void product(const unsigned char* codes, const u32* table, const unsigned char* act, const float* tok, const void* scale,
                    int scale_dtype, int scale_step, const void* bias, int bias_dtype, void* y, int y_dtype, int rows,
                    int words, int parts, int tokens, float step) {
  using F = Form<KIND>;
  constexpr int S = F::SELECTORS, PLANES = F::PLANES, MT = F::TILES, ST = F::STAGES, NW = F::WARPS;
  typedef typename Numbers<SPLIT>::Type Four;
  constexpr bool FLOATS = F::FLOATS;
  constexpr int ROWS = 16 * MT, LIMBS = FLOATS ? 1 : 2, COLS = LIMBS * T, NT = (COLS + 7) / 8, PIECES = PLANES * 2 * MT,
                SLOT = PIECES * 512, SIZE = sizeof(Four), ACT = S * 16 * SIZE * COLS;  // bytes of a step's activations
  SHARED_MEMORY(sm);
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, q = lane & 3;
  u32* entries = (u32*)(sm + 128);
  unsigned char* behind = sm + 128 + F::ENTRIES * 128;
  saddr ring = shared(behind) + warp * ST * SLOT + lane * 16;
  IN_REGISTER(ring);
  const int steps = (words + 63) / 64, longest = (steps + parts - 1) / parts;
  unsigned char* acts = (unsigned char*)(behind + NW * ST * SLOT);
  typename F::Total* sums = (typename F::Total*)(acts + longest * ACT);  // [row][column of B]; SPLIT: of u, then of v
  const int all = (rows + ROWS - 1) / ROWS;
  const int tile0 = (int)((long long)all * blockIdx.x / gridDim.x), tiles = (int)((long long)all * (blockIdx.x + 1) / gridDim.x) - tile0;
  if (tid == 0) barrier_init(sm);
  let_next_begin();
  u32 t0, t1, t2, t3, t4, t5, t6, t7;
  if (!FLOATS) { t0 = table[0]; t1 = table[1]; t2 = table[2]; t3 = table[3]; t4 = table[4]; t5 = table[5]; t6 = table[6]; t7 = table[7]; }
  for (int i = tid; i < F::ENTRIES * 32; i += 32 * NW) entries[i] = table[i / 32];
  saddr mine = shared(entries) + lane * 4;
  IN_REGISTER(mine);
  const int apart = tiles * ROWS * COLS;
  for (int i = tid; i < apart * (SPLIT ? 2 : 1); i += 32 * NW) sums[i] = 0;

  typename F::Sum c[MT][NT][2][4];  // two sums each: shorter chains of mma; SPLIT: of u and of v
#pragma unroll
  for (int t = 0; t < MT; ++t)
#pragma unroll
    for (int nt = 0; nt < NT; ++nt)
#pragma unroll
      for (int e = 0; e < 4; ++e) c[t][nt][0][e] = c[t][nt][1][e] = 0;
  auto flush = [&](int tile) {
    typename F::Total* at = sums + (tile * ROWS + g) * COLS + 2 * q;
#pragma unroll
    for (int t = 0; t < MT; ++t)
#pragma unroll
      for (int nt = 0; nt < NT; ++nt)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (COLS >= 8 || 2 * q + (e & 1) < COLS) {
            typename F::Total* sum = at + (16 * t + 8 * (e >> 1)) * COLS + nt * 8 + (e & 1);
            add_shared(sum, total(SPLIT ? c[t][nt][0][e] : c[t][nt][0][e] + c[t][nt][1][e]));
            if (SPLIT) add_shared(sum + apart, total(c[t][nt][1][e]));
          }
          c[t][nt][0][e] = c[t][nt][1][e] = 0;
        }
  };
  Four b[NT];
#pragma unroll
  for (int nt = 0; nt < NT; ++nt) b[nt] = {};
  saddr myacts = shared(acts) + ((g & (COLS - 1) & 7) * 4 + q) * SIZE;
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
    if (tid == 0) bulk_load(acts, act + (long long)c0 * ACT, L * ACT, sm);
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
          for (int nt = 0; nt < NT; ++nt) lds_if<COLS>(b[nt], ap + ((w * S + s) * COLS + nt * 8) * 4 * SIZE, g);
#pragma unroll
          for (int t = 0; t < MT; ++t) {
            u32 A[2][2][4];  // row g, g + 8; half; look-up
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              u32 planes[PLANES];
#pragma unroll
              for (int p = 0; p < PLANES; ++p) planes[p] = word_of(x[(2 * t + r) * PLANES + p], w);
              const u32 d = selector<KIND>(planes, s), e = KIND == 0 ? d ^ 0x88888888u : d & 0x77777777u;
              if (FLOATS) {
                A[r][0][0] = lds_word(mine + (d << 7 & 0x7f80)); A[r][0][1] = lds_word(mine + (d >> 1 & 0x7f80));
                A[r][0][2] = lds_word(mine + (d >> 9 & 0x7f80)); A[r][0][3] = lds_word(mine + (d >> 17 & 0x7f80));
                if (SPLIT) {  // u of two words in one register, v in another, as look-ups 0 and 2 of two halves
                  const u32 e0 = A[r][0][0], e1 = A[r][0][1], e2 = A[r][0][2], e3 = A[r][0][3];
                  A[r][0][0] = prmt(e0, e1, 0x5410); A[r][1][0] = prmt(e2, e3, 0x5410);
                  A[r][0][2] = prmt(e0, e1, 0x7632); A[r][1][2] = prmt(e2, e3, 0x7632);
                }
              }
#pragma unroll
              for (int h = 0; h < 2 && !FLOATS; ++h) {
                const u32 dd = h ? d >> 16 : d, ee = h ? e >> 16 : e;
                if (KIND == 0) { A[r][h][0] = prmt(t0, t1, dd); A[r][h][1] = prmt(t2, t3, ee); A[r][h][2] = prmt(t4, t5, dd); A[r][h][3] = prmt(t6, t7, ee); }
                if (KIND == 1) { A[r][h][0] = prmt(t0, t1, ee); A[r][h][2] = prmt(t4, t5, dd); A[r][h][3] = prmt(t6, t7, ee); }
                if (KIND == 2 || KIND == 3) { A[r][h][0] = prmt(t0, t1, dd); A[r][h][2] = prmt(t4, t5, dd); }
              }
            }
#pragma unroll
            for (int nt = 0; nt < NT; ++nt) {
              typename F::Sum* s0 = c[t][nt][0];
              typename F::Sum* s1 = c[t][nt][1];
              if constexpr (SPLIT) {
                multiply(s0, A[0][0][0], A[1][0][0], A[0][1][0], A[1][1][0], b[nt].x, b[nt].y);
                multiply(s1, A[0][0][2], A[1][0][2], A[0][1][2], A[1][1][2], b[nt].x, b[nt].y);
                if (KIND == 0) multiply(s0, A[0][0][1], A[1][0][1], A[0][1][1], A[1][1][1], b[nt].x, b[nt].y);
                if (KIND < 2) multiply(s1, A[0][0][3], A[1][0][3], A[0][1][3], A[1][1][3], b[nt].x, b[nt].y);
              } else {
                const int second = FLOATS ? 1 : 2, half = FLOATS ? 0 : 1, after = FLOATS ? 2 : 0;
                multiply(s0, A[0][0][0], A[1][0][0], A[0][0][second], A[1][0][second], b[nt].x, b[nt].y);
                multiply(s1, A[0][half][after], A[1][half][after], A[0][half][after + second], A[1][half][after + second], b[nt].z, b[nt].w);
                if (KIND == 0) {
                  multiply(s0, A[0][0][1], A[1][0][1], A[0][0][3], A[1][0][3], b[nt].x, b[nt].y);
                  multiply(s1, A[0][1][1], A[1][1][1], A[0][1][3], A[1][1][3], b[nt].z, b[nt].w);
                } else if (KIND == 1) {
                  multiply(w & 1 ? s1 : s0, A[0][0][3], A[1][0][3], A[0][1][3], A[1][1][3], b[nt].y, b[nt].w);
                }
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
    if (row >= rows) continue;
    if (SPLIT) {
      for (int line = 0; line < 2 * tokens; ++line) {  // p and q of a token, in turn
        const typename F::Total* sum = sums + (line & 1) * apart + i * COLS + LIMBS * (line >> 1);
        ((float*)y)[(long long)line * rows + row] = step * (tok[line >> 1] * value(sum));
      }
    } else {
      const float factor = scale_dtype == NONE ? step : step * number(scale, scale_dtype, (long long)row * scale_step);
      const float added = bias_dtype == NONE ? 0.f : number(bias, bias_dtype, row);
      for (int token = 0; token < tokens; ++token) {
        const float sum = value(sums + i * COLS + LIMBS * token);
        ((u16*)y)[(long long)token * rows + row] = rounded(factor * (tok[token] * sum) + added, y_dtype);
      }
    }
  }
}

#ifndef EMULATED
KERNEL __launch_bounds__(32 * Form<THE_KIND>::WARPS, 1) kquant_product(const unsigned char* codes, const u32* table, const unsigned char* act, const float* tok, const void* scale,
    int scale_dtype, int scale_step, const void* bias, int bias_dtype, void* y, int y_dtype, int rows, int words, int parts, int tokens, float step) {
  product<THE_KIND, TOKENS, THE_SPLIT>(codes, table, act, tok, scale, scale_dtype, scale_step, bias, bias_dtype, y, y_dtype, rows, words, parts, tokens, step);
}
#endif
