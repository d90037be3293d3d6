// Codes of blocks as floats, 16 rows at a time: those are the lanes of vectors, or after a transposition the columns are.

#pragma once

#include "lookup.h"
#include "numbers.h"
#include "rows.h"

namespace {

template <bool THREE> INLINE Bytes index_at(const uint8_t *p, long s, int upper) {
    if constexpr (!THREE) {
        return index_of<false>(p + 64 * s, 0, upper);
    } else {
        if (s < 6) return index_of<true>(p + 64 * s, 0, upper);
        return s == 6 ? index_of<true>(p, 6, upper) : index_of<true>(p, 7, upper);
    }
}

// The even or odd bytes of 32; of them only the lowest four bits count.
INLINE rows::Integers widened(const uint8_t *bytes, int odd) {
#if defined(__AVX512F__)
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_load_si256((const __m256i *)bytes));
    return (rows::Integers)(odd ? _mm512_srli_epi32(words, 8) : words);
#else
    rows::Integers lanes;
    for (int i = 0; i < 16; i++) lanes[i] = bytes[2 * i + odd];
    return lanes;
#endif
}

INLINE rows::Vector pick(const float *table, rows::Integers index) {
#if defined(__AVX512F__)
    return (rows::Vector)_mm512_permutexvar_ps((__m512i)index, _mm512_load_ps(table));
#elif defined(__AVX2__)
    rows::Vector found;
    const __m256 low = _mm256_load_ps(table), high = _mm256_load_ps(table + 8);
    for (int half = 0; half < 2; half++) {
        __m256i i;
        memcpy(&i, (const int32_t *)&index + 8 * half, sizeof i);
        const __m256 f = _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, i), _mm256_permutevar8x32_ps(high, i),
                                          (__m256)_mm256_slli_epi32(i, 28));
        memcpy((float *)&found + 8 * half, &f, sizeof f);
    }
    return found;
#else
    rows::Vector found;
    for (int i = 0; i < 16; i++) found[i] = table[index[i] & 15];
    return found;
#endif
}

// u and v of 16 rows of a block, a quarter of it, [column][row], from the step on that `codes` are at.
template <bool THREE>
void points(const Blocks &blocks, const uint8_t *codes, long slots, long quarter, const Book &book, rows::Vector *u,
            rows::Vector *v) {
    const int upper = quarter / 2, odd = quarter % 2;
    alignas(64) uint8_t index[64];  // of slots s and s + 8
    for (long slot = 0; slot < slots; slot++) {
        const long s = slot / 2 % 8, side = slot % 2, true_slot = slot / STEP * STEP + s + 8 * side;
        if (!side)
            for (long part = 0; part < 64; part += WIDTH) {
                const Bytes found = index_at<THREE>(codes + slot / STEP * blocks.step_bytes + part, s, upper);
                memcpy(index + part, &found, sizeof found);
            }
        const rows::Integers lanes = widened(index + 32 * side, odd);
        for (int p = 0; p < blocks.per; p++) {
            u[true_slot * blocks.per + p] = pick(book.u.of[p], lanes);
            v[true_slot * blocks.per + p] = pick(book.v.of[p], lanes);
        }
    }
}

// Up to 16 numbers, aligned to 64 bytes, as float32 or bfloat16 to out[at ..].
INLINE void put(const float *from, long count, int dtype, void *out, long at) {
    if (dtype == FLOAT32) {
        memcpy((float *)out + at, from, count * sizeof(float));
        return;
    }
    uint16_t *const to = (uint16_t *)out + at;
#if defined(__AVX512BF16__)
    const __m256bh rounded = _mm512_cvtneps_pbh(_mm512_load_ps(from));
    memcpy(to, &rounded, count * sizeof(uint16_t));
#else
    for (long i = 0; i < count; i++) to[i] = to_bfloat(from[i]);
#endif
}

// 16 columns of 16 rows, scaled, as rows.
INLINE void transpose(const rows::Vector *from, rows::Vector scale, float (&to)[16][16]) {
#if defined(__AVX512F__)
    __m512 a[16], b[16];
    UNROLL_ALL for (int i = 0; i < 16; i++) a[i] = (__m512)(from[i] * scale);
    UNROLL_ALL for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    UNROLL_ALL for (int i = 0; i < 16; i += 4)
        UNROLL_ALL for (int half = 0; half < 2; half++) {
            a[i + 2 * half] = _mm512_shuffle_ps(b[i + half], b[i + half + 2], 0x44);
            a[i + 2 * half + 1] = _mm512_shuffle_ps(b[i + half], b[i + half + 2], 0xEE);
        }
    UNROLL_ALL for (int k = 0; k < 4; k++) {  // a[4 q + k]: quarters' rows 4 l + k, of columns 4 q ..
        const __m512 p = _mm512_shuffle_f32x4(a[k], a[4 + k], 0x88), q = _mm512_shuffle_f32x4(a[k], a[4 + k], 0xDD);
        const __m512 r = _mm512_shuffle_f32x4(a[8 + k], a[12 + k], 0x88);
        const __m512 s = _mm512_shuffle_f32x4(a[8 + k], a[12 + k], 0xDD);
        _mm512_store_ps(to[k], _mm512_shuffle_f32x4(p, r, 0x88));
        _mm512_store_ps(to[8 + k], _mm512_shuffle_f32x4(p, r, 0xDD));
        _mm512_store_ps(to[4 + k], _mm512_shuffle_f32x4(q, s, 0x88));
        _mm512_store_ps(to[12 + k], _mm512_shuffle_f32x4(q, s, 0xDD));
    }
#elif defined(__AVX2__)
    float scales[16];
    memcpy(scales, &scale, sizeof scales);
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j < 16; j += 8) {  // rows i .., columns j ..
            __m256 a[8], b[8];
            UNROLL_ALL for (int k = 0; k < 8; k++)
                a[k] = _mm256_mul_ps(_mm256_loadu_ps((const float *)(from + j + k) + i), _mm256_loadu_ps(scales + i));
            UNROLL_ALL for (int k = 0; k < 8; k += 2) {
                b[k] = _mm256_unpacklo_ps(a[k], a[k + 1]);
                b[k + 1] = _mm256_unpackhi_ps(a[k], a[k + 1]);
            }
            UNROLL_ALL for (int k = 0; k < 8; k += 4)
                UNROLL_ALL for (int half = 0; half < 2; half++) {
                    a[k + 2 * half] = _mm256_shuffle_ps(b[k + half], b[k + half + 2], 0x44);
                    a[k + 2 * half + 1] = _mm256_shuffle_ps(b[k + half], b[k + half + 2], 0xEE);
                }
            UNROLL_ALL for (int k = 0; k < 4; k++) {
                _mm256_storeu_ps(&to[i + k][j], _mm256_permute2f128_ps(a[k], a[4 + k], 0x20));
                _mm256_storeu_ps(&to[i + 4 + k][j], _mm256_permute2f128_ps(a[k], a[4 + k], 0x31));
            }
        }
#else
    for (int j = 0; j < 16; j++) {
        const rows::Vector value = from[j] * scale;
        for (int i = 0; i < 16; i++) to[i][j] = value[i];
    }
#endif
}

}  // namespace
