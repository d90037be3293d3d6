// The product of codes of up to 16 levels (blocks.h) with activations, by byte shuffles and without multiplications:
//
//     y[i] = sum_j Cu[code_ij] a[j] + Cv[code_ij] b[j]
//
// What a slot adds to a row is one of 16 numbers. They are made once for all rows, as integers of 6 bits a limb with a
// scale for each STRETCH of slots, and a shuffle looks a limb up with the codes of 32 rows as its indices. Bytes are
// summed four at a time (4 * 63 < 256), then as 16 bits. Nothing else is rounded, neither codebook nor activations: two
// limbs are about as good as 16-bit floats (a relative error of y below 1e-3), three as float32 (2e-5).
//
// Where the two terms are wanted apart, since bases of the output follow, a slot has tables for each: its index is made
// once, and both are summed in one pass over the codes. For constant codebooks some processors have a faster way (dots.h).

#pragma once

#include "blocks.h"
#include "vectors.h"

#if defined(__AVX2__) || defined(__AVX512BW__) || defined(__SSSE3__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#define UNROLL_ALL _Pragma("GCC unroll 16")

#if defined(__AVX512BW__)
constexpr long WIDTH = 64;
#elif defined(__AVX2__)
constexpr long WIDTH = 32;
#else
constexpr long WIDTH = 16;
#endif
constexpr long SIDES = WIDTH == 64 ? 2 : 1;   // slots in a vector
constexpr long PARTS = WIDTH == 16 ? 2 : 1;   // vectors of a slot
constexpr long STRETCH = 256;                 // slots whose sums stay in 16 bits, and share a scale
constexpr long TABLE = WIDTH == 64 ? 64 : 32; // bytes of a limb of slots s and s + 8: with 64, spread for their lanes
constexpr long AHEAD = 8192;                  // bytes from what is read to what is fetched
constexpr int ENTRIES = 16;

typedef uint8_t Bytes __attribute__((vector_size(WIDTH)));
typedef uint16_t Words __attribute__((vector_size(WIDTH)));

using single::Integers;
using single::LANES;
using Floats = single::Vector;
constexpr int PIECES = ENTRIES / LANES;

// ---------------------------------------------------------------------------------------------------------- tables

// What the 16 values of a slot's index say for each of its columns: u, or v, of that column's code.
struct Points {
    alignas(64) float of[4][ENTRIES];  // [column of the slot]
    float most = 0;                    // magnitude
};

struct Book {
    Points u, v;

    Book(const float *codebook, int levels, int book_columns, const Blocks &blocks) {
        for (int p = 0; p < blocks.per; p++)
            for (int i = 0; i < ENTRIES; i++) {
                const int code = (i >> blocks.bits * p) & ((1 << blocks.bits) - 1);
                const float *const pair = codebook + code * book_columns;
                u.of[p][i] = code < levels ? pair[0] : 0;
                v.of[p][i] = code < levels && book_columns == 2 ? pair[1] : 0;
                u.most = std::max(u.most, std::fabs(u.of[p][i]));
                v.most = std::max(v.most, std::fabs(v.of[p][i]));
            }
    }
};

INLINE Floats floats(const float *p) {
    Floats v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void narrow(const Integers (&q)[PIECES], uint8_t *out) {
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i *)out, _mm512_cvtepi32_epi8((__m512i)q[0]));
#elif defined(__AVX2__)
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)q[0], (__m256i)q[1]), 0xD8);
    const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
    _mm_storeu_si128((__m128i *)out, _mm_packus_epi16(low, high));
#else
    UNROLL_ALL for (int i = 0; i < ENTRIES; i++) out[i] = (uint8_t)q[i / LANES][i % LANES];
#endif
}

// The most that a slot of `per` columns can come to, of `count` columns (a multiple of 16); NaN where a number is none,
// or infinite.
INLINE float bound_of(const float *a, const float *b, float u_most, float v_most, long count, int per) {
    Floats most = {}, poison = {};
    for (long j = 0; j < count; j += LANES) {
        Floats x = floats(a + j), y = {};
        if (b) y = floats(b + j);
        poison += (x + y) * 0.0f;
        x = x < 0 ? -x : x;
        y = y < 0 ? -y : y;
        Floats size = x * u_most + y * v_most;
        for (int together = 1; together < per; together *= 2) {  // the lanes of a slot then hold the slot's sum
            Floats other;
            for (int i = 0; i < LANES; i++) other[i] = size[i ^ together];
            size += other;
        }
        most = size > most ? size : most;
    }
    float bound = 0, wrong = 0;
    for (int i = 0; i < LANES; i++) {
        bound = std::max(bound, most[i]);
        wrong += poison[i];
    }
    return bound + wrong;
}

// The tables of `slots` slots (a multiple of STEP) for u a + v b, b null: u a alone; the scale is returned. A table is
// [step][s][limb][side][16], or with vectors of 64 bytes [step][s][limb][side][2][16]; a slot has `all` limbs.
template <int LIMBS>
float make_tables(const Blocks &blocks, const Points &of_a, const float *a, const Points &of_b, const float *b, long slots,
                  long all, uint8_t *tables) {
    constexpr int MIDDLE = 1 << (6 * LIMBS - 1);
    const float bound = bound_of(a, b, of_a.most, of_b.most, slots * blocks.per, blocks.per);
    const float inverse = bound > 0 ? (MIDDLE - 1) / bound : 0;
    const float middle = 12582912.0f + MIDDLE;  // 1.5 * 2^23: the sum's low bits are the rounded number
    Floats u[4][PIECES], v[4][PIECES];
    for (int p = 0; p < 4 * PIECES; p++) {
        u[p / PIECES][p % PIECES] = floats(of_a.of[p / PIECES] + p % PIECES * LANES) * inverse;
        v[p / PIECES][p % PIECES] = floats(of_b.of[p / PIECES] + p % PIECES * LANES) * inverse;
    }
    for (long slot = 0; slot < slots; slot++) {
        Integers limbs[LIMBS][PIECES];
        UNROLL_ALL for (int piece = 0; piece < PIECES; piece++) {
            Floats sum = {};
            for (int p = 0; p < blocks.per; p++) {
                sum += u[p][piece] * a[slot * blocks.per + p];
                if (b) sum += v[p][piece] * b[slot * blocks.per + p];
            }
            const Integers q = (Integers)(sum + middle);
            UNROLL_ALL for (int l = 0; l < LIMBS; l++) limbs[l][piece] = q >> 6 * l & 63;
        }
        const long s = slot % 8, side = slot % STEP / 8;
        uint8_t *const to = tables + (slot / STEP * 8 + s) * all * TABLE + side * (TABLE / 2);
        UNROLL_ALL for (int l = 0; l < LIMBS; l++) {
            narrow(limbs[l], to + l * TABLE);
            if (WIDTH == 64) memcpy(to + l * TABLE + 16, to + l * TABLE, 16);
        }
    }
    return bound / (MIDDLE - 1);
}

// --------------------------------------------------------------------------------------------------------- look-up

INLINE Bytes load(const uint8_t *p) {
    Bytes v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE Bytes shuffle(const uint8_t *table, Bytes index) {  // index: bits 0 .. 3, and no others
#if defined(__AVX512BW__)
    return (Bytes)_mm512_shuffle_epi8(_mm512_load_si512(table), (__m512i)index);
#elif defined(__AVX2__)
    return (Bytes)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)table)), (__m256i)index);
#elif defined(__SSSE3__)
    return (Bytes)_mm_shuffle_epi8(_mm_load_si128((const __m128i *)table), (__m128i)index);
#elif defined(__aarch64__)
    return (Bytes)vqtbl1q_u8(vld1q_u8(table), (uint8x16_t)index);
#else
    Bytes found;
    for (int i = 0; i < WIDTH; i++) found[i] = table[index[i]];
    return found;
#endif
}

// The indices of slot s (of 8) of the lower or upper rows, for the vector at `p` within each 64 bytes.
template <bool THREE> INLINE Bytes index_of(const uint8_t *p, int s, int upper) {
    const Bytes nibble = 15 - Bytes{};
    if constexpr (!THREE) {
        const Bytes codes = load(p + 64 * s);
        return upper ? (Bytes)((Words)codes >> 4) & nibble : codes & nibble;
    } else if (s < 6) {
        const Bytes codes = load(p + 64 * s);
        return upper ? (Bytes)((Words)codes >> 3) & nibble : codes & nibble;  // a fourth bit does not count
    } else {
        const int first = 3 * (s - 6);
        const Words low = (Words)load(p + 64 * (first + 2 * upper)) >> 6;
        const Words high = (Words)load(p + 64 * (first + 1)) >> (4 + upper);
        return ((Bytes)low & (3 - Bytes{})) | ((Bytes)high & (4 - Bytes{}));
    }
}

// Sums of `slots` slots for 32 rows of a block, the lower or the UPPER, or with BOTH for all 64.
template <bool THREE, int LIMBS, bool BOTH, int UPPER>
INLINE void add_up(const uint8_t *codes, const uint8_t *tables, long slots, uint16_t (*sums)[2][2][16 * SIDES]) {
    constexpr long STEP_BYTES = THREE ? 384 : 512;
    constexpr int HALVES = BOTH ? 2 : 1;
    for (long part = 0; part < PARTS; part++) {
        Words all[LIMBS][HALVES] = {}, odd[LIMBS][HALVES] = {};  // sums of words, and of their upper bytes
        for (long step = 0; step < slots / STEP; step++) {
            const uint8_t *const at = codes + step * STEP_BYTES + part * WIDTH;
            const uint8_t *const table = tables + step * 8 * LIMBS * TABLE;
            for (long line = 0; !UPPER && line < STEP_BYTES; line += 64) __builtin_prefetch(at + AHEAD + line, 0, 1);
            UNROLL_ALL for (int run = 0; run < 4 / SIDES; run++) {  // of four vectors: 8 slots with 64 bytes, else 4
                const int begin = SIDES == 2 ? 4 * run : run % 2 * 4, side = SIDES == 2 ? 0 : run / 2;
                UNROLL_ALL for (int half = 0; half < HALVES; half++) {
                    Bytes sum[LIMBS];
                    UNROLL_ALL for (int i = 0; i < 4; i++) {
                        const Bytes index = index_of<THREE>(at + 32 * side, begin + i, UPPER + half);
                        UNROLL_ALL for (int l = 0; l < LIMBS; l++) {
                            const uint8_t *const t = table + ((begin + i) * LIMBS + l) * TABLE + side * (TABLE / 2);
                            const Bytes found = shuffle(t, index);
                            sum[l] = i ? sum[l] + found : found;
                        }
                    }
                    UNROLL_ALL for (int l = 0; l < LIMBS; l++) {
                        all[l][half] += (Words)sum[l];
                        odd[l][half] += (Words)sum[l] >> 8;
                    }
                    if (WIDTH == 32) asm volatile("" ::: "memory");  // load codes and tables again: sums need the registers
                }
            }
        }
        UNROLL_ALL for (int l = 0; l < LIMBS; l++)
            UNROLL_ALL for (int half = 0; half < HALVES; half++) {
                const Words found[2] = {all[l][half] - (odd[l][half] << 8), odd[l][half]};
                for (int second = 0; second < 2; second++)
                    memcpy(sums[l][UPPER + half][second] + part * 8, &found[second], sizeof(Words));
            }
    }
}

// y[term][row of a block] += scale of the term * (the sum of `slots` slots); each term has LIMBS of a slot's limbs.
template <bool THREE, int LIMBS, int TERMS>
__attribute__((noinline)) void look_up(const uint8_t *codes, const uint8_t *tables, long slots, const float *scales,
                                       float *y) {
    constexpr int ALL = LIMBS * TERMS;
    alignas(64) uint16_t sums[ALL][2][2][16 * SIDES];  // [limb][upper][second 16 rows][side, row]
    if constexpr (ALL <= (WIDTH == 64 ? 4 : 3)) {  // as many sums as stay in registers
        add_up<THREE, ALL, true, 0>(codes, tables, slots, sums);
    } else {
        add_up<THREE, ALL, false, 0>(codes, tables, slots, sums);
        add_up<THREE, ALL, false, 1>(codes, tables, slots, sums);
    }
    const int middle = (int)slots << (6 * LIMBS - 1);
    for (int term = 0; term < TERMS; term++)
        for (int q = 0; q < 4; q++) {
            for (int i = 0; i < 16; i++) {
                int sum = -middle;
                UNROLL_ALL for (int l = 0; l < LIMBS; l++) {
                    const uint16_t *const limb = sums[term * LIMBS + l][q / 2][q % 2];
                    sum += (SIDES == 2 ? limb[i] + limb[i + 16] : limb[i]) << 6 * l;
                }
                y[term * BLOCK_ROWS + 16 * q + i] += scales[term] * (float)sum;
            }
        }
}

}  // namespace
