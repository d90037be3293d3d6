// Both terms of codes of 5 to 16 levels by products of bytes, which some processors sum four at a time (AVX-512 VNNI):
//
//     p[i] = sum_j u[code_ij] z[j],    q[i] = sum_j v[code_ij] z[j]
//
// for a codebook of integers from -127 to 127 over 2^7 (codebooks/integer_grids.py). z is an integer of 16 or 24 bits with
// a scale for each STRETCH of slots, in digits of 8 bits with signs; nothing else is rounded. A shuffle turns codes into
// u + 128, or v + 128, and what 128 adds is the same for all rows. Half the work of look-ups for two terms (lookup.h), and
// no tables.
//
// The bytes of four columns have to stand side by side: two unpackings of four vectors of codes give 4 columns of 4 rows
// in 16 bytes. Sums are held in the order in which they come: `row_of` says whose they are.

#pragma once

#include "lookup.h"

namespace {

struct Offsets {
    alignas(64) uint8_t u[ENTRIES], v[ENTRIES];  // u + 128 and v + 128 of the codes that are indices

    bool read(const float *codebook, long levels) {  // (levels, 2); false: these are no such integers
        for (long i = 0; i < ENTRIES; i++)
            for (long term = 0; term < 2; term++) {
                const float number = i < levels ? codebook[2 * i + term] * 128 : 0;
                if (!(std::fabs(number) <= 127 && number == std::rint(number))) return false;
                (term ? v : u)[i] = (uint8_t)(int)(number + 128);
            }
        for (long i = 8; levels <= 8 && i < ENTRIES; i++) u[i] = u[i - 8], v[i] = v[i - 8];  // a fourth bit does not count
        return true;
    }
};

// The row of a block whose sum is number `place`.
INLINE long row_of(long place) {
    const long upper = place / 32, eighth = place / 8 % 4, byte = 16 * (place / 4 % 2) + 4 * eighth + place % 4;
    return 32 * upper + byte / 2 + 16 * (byte % 2);
}

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)

constexpr bool HAS_DOTS = true;

// Of a stretch: [step][slots s and s + 8 of 4][digit][64], with the digits of 4 slots again and again, and then what 128
// adds, (DIGITS,) integers.
template <int DIGITS> constexpr long DIGITS_OF_STEP = 2 * DIGITS * 64;
template <int DIGITS> constexpr long ALL_DIGITS = STRETCH / STEP * DIGITS_OF_STEP<DIGITS>;

// The digits of z (slots,); the scale is returned.
template <int DIGITS> float make_digits(const float *z, long slots, uint8_t *out) {
    constexpr int MOST = 127 << 8 * (DIGITS - 1);
    const float bound = bound_of(z, nullptr, 1, 0, slots, 1), inverse = bound > 0 ? MOST / bound : 0;
    const __m512i first = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(2), 1);
    int sums[DIGITS] = {};
    for (long step = 0; step < slots / STEP; step++) {
        __m512i rest = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(z + step * STEP), _mm512_set1_ps(inverse)));
        for (int d = 0; d < DIGITS; d++) {
            const __m512i digit = d + 1 < DIGITS ? _mm512_srai_epi32(_mm512_slli_epi32(rest, 24), 24) : rest;
            rest = _mm512_srai_epi32(_mm512_sub_epi32(rest, digit), 8);
            sums[d] += 128 * _mm512_reduce_add_epi32(digit);
            const __m512i bytes = _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(digit));
            for (int four = 0; four < 2; four++) {
                const __m512i order = _mm512_add_epi32(first, _mm512_set1_epi32(four));
                _mm512_store_si512(out + step * DIGITS_OF_STEP<DIGITS> + (four * DIGITS + d) * 64,
                                   _mm512_permutexvar_epi32(order, bytes));
            }
        }
    }
    memcpy(out + ALL_DIGITS<DIGITS>, sums, sizeof sums);
    return bound / MOST / 128;
}

// The first or the second HALF of each 16 bytes of four vectors: 4 bytes of one place in all of them, and so on.
template <int HALF> INLINE void interleave(const Bytes (&from)[4], __m512i (&to)[2]) {
    const __m512i a = (__m512i)from[0], b = (__m512i)from[1], c = (__m512i)from[2], d = (__m512i)from[3];
    const __m512i ab = HALF ? _mm512_unpackhi_epi8(a, b) : _mm512_unpacklo_epi8(a, b);
    const __m512i cd = HALF ? _mm512_unpackhi_epi8(c, d) : _mm512_unpacklo_epi8(c, d);
    to[0] = _mm512_unpacklo_epi16(ab, cd);
    to[1] = _mm512_unpackhi_epi16(ab, cd);
}

// The points of indices, of which the lowest four bits count; `points` stand in every 16 bytes.
INLINE __m512i pick_bytes(__m512i points, __m512i index) {
#if defined(__AVX512VBMI__)
    return _mm512_permutexvar_epi8(index, points);
#else
    return _mm512_shuffle_epi8(points, _mm512_and_si512(index, _mm512_set1_epi8(15)));
#endif
}

template <bool THREE, int DIGITS, int HALF>
INLINE void add_dots(const uint8_t *codes, const uint8_t *digits, long slots, const Offsets &book, float scale, float *y) {
    constexpr long STEP_BYTES = THREE ? 384 : 512;
    const __m512i points[2] = {_mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)book.u)),
                               _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)book.v))};
    __m512i sums[2][2][2][DIGITS] = {};  // [upper][which of the two][term]
    for (long step = 0; step < slots / STEP; step++) {
        const uint8_t *const at = codes + step * STEP_BYTES, *const z = digits + step * DIGITS_OF_STEP<DIGITS>;
        for (long line = 0; !HALF && line < STEP_BYTES; line += 64) __builtin_prefetch(at + AHEAD + line, 0, 1);
        UNROLL_ALL for (int four = 0; four < 2; four++) {
            __m512i index[2][2];  // [upper]
            if (THREE && four) {  // slots 6 and 7 are put together of bits of others
                UNROLL_ALL for (int upper = 0; upper < 2; upper++) {
                    Bytes of[4];
                    UNROLL_ALL for (int i = 0; i < 4; i++) of[i] = index_of<true>(at, 4 * four + i, upper);
                    interleave<HALF>(of, index[upper]);
                }
            } else {
                Bytes of[4];
                UNROLL_ALL for (int i = 0; i < 4; i++) of[i] = load(at + 64 * (4 * four + i));
                interleave<HALF>(of, index[0]);
                UNROLL_ALL for (int k = 0; k < 2; k++) index[1][k] = _mm512_srli_epi16(index[0][k], THREE ? 3 : 4);
            }
            UNROLL_ALL for (int upper = 0; upper < 2; upper++)
                UNROLL_ALL for (int k = 0; k < 2; k++)
                    UNROLL_ALL for (int term = 0; term < 2; term++) {
                        const __m512i found = pick_bytes(points[term], index[upper][k]);
                        UNROLL_ALL for (int d = 0; d < DIGITS; d++) {
                            __m512i &sum = sums[upper][k][term][d];
                            sum = _mm512_dpbusd_epi32(sum, found, _mm512_load_si512(z + (four * DIGITS + d) * 64));
                        }
                    }
        }
    }
    int shared[DIGITS];
    memcpy(shared, digits + ALL_DIGITS<DIGITS>, sizeof shared);
    UNROLL_ALL for (int upper = 0; upper < 2; upper++)
        UNROLL_ALL for (int k = 0; k < 2; k++)
            UNROLL_ALL for (int term = 0; term < 2; term++) {
                __m256 all = _mm256_setzero_ps();
                UNROLL_ALL for (int d = 0; d < DIGITS; d++) {
                    const __m512i both = sums[upper][k][term][d];
                    const __m256i sum = _mm256_add_epi32(_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64(both, 1));
                    const __m256 own = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_set1_epi32(shared[d])));
                    all = _mm256_fmadd_ps(own, _mm256_set1_ps((float)(1 << 8 * d)), all);
                }
                float *const to = y + term * BLOCK_ROWS + 32 * upper + 16 * HALF + 8 * k;
                _mm256_storeu_ps(to, _mm256_fmadd_ps(all, _mm256_set1_ps(scale), _mm256_loadu_ps(to)));
            }
}

// y[term][place in a block] += scale * (the sum of `slots` slots).
template <bool THREE, int DIGITS>
__attribute__((noinline)) void dots(const uint8_t *codes, const uint8_t *digits, long slots, const Offsets &book,
                                    float scale, float *y) {
    add_dots<THREE, DIGITS, 0>(codes, digits, slots, book, scale, y);
    add_dots<THREE, DIGITS, 1>(codes, digits, slots, book, scale, y);
}

#else

constexpr bool HAS_DOTS = false;

template <int DIGITS> float make_digits(const float *, long, uint8_t *) { return 0; }

template <bool THREE, int DIGITS> void dots(const uint8_t *, const uint8_t *, long, const Offsets &, float, float *) {}

#endif

}  // namespace
