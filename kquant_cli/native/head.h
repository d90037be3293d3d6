// One token's product with a dense matrix (rows, columns) of any dtype, such as a model's output head: y = W x + bias.
//
// Nothing is to be gained but by reading the matrix as fast as memory gives it, which libraries do for float32 alone.

#pragma once

#include "layer.h"

namespace {

struct Head {
    const void *weight, *bias;  // bias: null, or of the weight's dtype
    int dtype;
    long rows, columns;
    const float *x;
    void *y;
    Tasks tasks;

    static constexpr long TOGETHER_ROWS = 4, TASK = 64, FAR = 8192;  // bytes from what is read to what is fetched

    template <int DTYPE> INLINE static single::Vector widened(const void *numbers, long i) {
        single::Vector v;
        if constexpr (DTYPE == FLOAT32) {
            memcpy(&v, (const float *)numbers + i, sizeof v);
        } else {
            const uint16_t *const at = (const uint16_t *)numbers + i;
#if defined(__AVX512F__)
            const __m256i bits = _mm256_loadu_si256((const __m256i *)at);
            if constexpr (DTYPE == BFLOAT16)
                v = (single::Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
            else
                v = (single::Vector)_mm512_cvtph_ps(bits);
#elif defined(__AVX2__) && defined(__F16C__)
            const __m128i bits = _mm_loadu_si128((const __m128i *)at);
            if constexpr (DTYPE == BFLOAT16)
                v = (single::Vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
            else
                v = (single::Vector)_mm256_cvtph_ps(bits);
#else
            for (int lane = 0; lane < single::LANES; lane++) v[lane] = number(at, DTYPE, lane);
#endif
        }
        return v;
    }

    template <int DTYPE> void multiply(long first) const {
        constexpr long SIZE = DTYPE == FLOAT32 ? 4 : 2;
        const char *at[TOGETHER_ROWS];
        single::Vector sums[TOGETHER_ROWS] = {};
        for (int r = 0; r < TOGETHER_ROWS; r++)
            at[r] = (const char *)weight + std::min(first + r, rows - 1) * columns * SIZE;
        long i = 0;
        for (; i + single::LANES <= columns; i += single::LANES) {
            single::Vector factor;
            memcpy(&factor, x + i, sizeof factor);
            UNROLL_ALL for (int r = 0; r < TOGETHER_ROWS; r++) {
                __builtin_prefetch(at[r] + i * SIZE + FAR, 0, 1);
                sums[r] += widened<DTYPE>(at[r], i) * factor;
            }
        }
        for (int r = 0; r < TOGETHER_ROWS && first + r < rows; r++) {
            float sum = bias ? number(bias, DTYPE, first + r) : 0;
            for (int lane = 0; lane < single::LANES; lane++) sum += sums[r][lane];
            for (long j = i; j < columns; j++) sum += number(at[r], DTYPE, j) * x[j];
            store(y, DTYPE, first + r, sum);
        }
    }

    void operator()() {
        tasks.run((rows + TASK - 1) / TASK, [&](long task) {
            for (long row = task * TASK; row < std::min(rows, (task + 1) * TASK); row += TOGETHER_ROWS)
                dtype == FLOAT32    ? multiply<FLOAT32>(row)
                : dtype == BFLOAT16 ? multiply<BFLOAT16>(row)
                                    : multiply<FLOAT16>(row);
        });
    }
};

inline bool head(const void *weight, const void *bias, int dtype, long rows, long columns, const void *x, void *y,
                 int threads, Parallel *parallel) {
    static thread_local Workspace workspace;
    float *const in = (float *)workspace.of(columns * sizeof(float));
    if (!in) return false;
    read(x, dtype, columns, in);
    Head job{weight, bias, dtype, rows, columns, in, y};
    in_parallel(job, threads, parallel);
    return true;
}

}  // namespace
