// Numbers as torch stores them, by the code that runtime/layer_loops.py gives a dtype.

#pragma once

#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

enum { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

inline long bytes_of(int dtype) { return dtype == FLOAT32 ? 4 : 2; }

inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float from_half(uint16_t half) {
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | rest << 13);
    const float size = from_bits(rest << 13) * 0x1p112f;  // subnormal numbers, too
    return from_bits(sign | to_bits(size));
#endif
}

inline uint16_t to_half(float value) {
#if defined(__F16C__)
    return _cvtss_sh(value, 0);
#else
    const uint32_t bits = to_bits(value), sign = bits >> 16 & 0x8000;
    uint32_t rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return sign | 0x7e00;
    if (rest >= 0x477ff000) return sign | 0x7c00;
    if (rest < 0x38800000) return sign | (uint16_t)(to_bits(from_bits(rest) + 0.5f) - 0x3f000000);  // subnormal
    rest += 0xfff + (rest >> 13 & 1);
    return sign | (uint16_t)((rest - 0x38000000) >> 13);
#endif
}

inline uint16_t to_bfloat(float value) {
    const uint32_t bits = to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 64;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline float number(const void *numbers, int dtype, long i) {
    if (dtype == FLOAT32) return ((const float *)numbers)[i];
    const uint16_t bits = ((const uint16_t *)numbers)[i];
    return dtype == BFLOAT16 ? from_bits((uint32_t)bits << 16) : from_half(bits);
}

inline void store(void *numbers, int dtype, long i, float value) {
    if (dtype == FLOAT32)
        ((float *)numbers)[i] = value;
    else
        ((uint16_t *)numbers)[i] = dtype == BFLOAT16 ? to_bfloat(value) : to_half(value);
}

inline void read(const void *from, int dtype, long count, float *to) {
    switch (dtype) {  // a loop for each, which the compiler turns into vectors
        case FLOAT32:
            memcpy(to, from, count * sizeof(float));
            break;
        case BFLOAT16:
            for (long i = 0; i < count; i++) to[i] = number(from, BFLOAT16, i);
            break;
        default: {
            long i = 0;
#if defined(__F16C__)
            for (; i + 8 <= count; i += 8)
                _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)from + i))));
#endif
            for (; i < count; i++) to[i] = number(from, FLOAT16, i);
        }
    }
}

inline void write(const float *from, int dtype, long count, void *to) {
    switch (dtype) {
        case FLOAT32:
            memcpy(to, from, count * sizeof(float));
            break;
        case BFLOAT16:
            for (long i = 0; i < count; i++) store(to, BFLOAT16, i, from[i]);
            break;
        default: {
            long i = 0;
#if defined(__F16C__)
            for (; i + 8 <= count; i += 8)
                _mm_storeu_si128((__m128i *)((uint16_t *)to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
#endif
            for (; i < count; i++) store(to, FLOAT16, i, from[i]);
        }
    }
}

}  // namespace
