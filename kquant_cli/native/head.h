// Products of a few tokens with a matrix (rows, columns) that takes as long as it takes to read it, such as a model's
// output head: dense numbers of any dtype, or codes of a byte (runtime/byte_codes.py),
//
//     y_i = sum_g scale_ig (sum_j w_ij x_j + offset sum_j x_j) + bias_i      over the columns j of group g
//
// Dense: w are the numbers, one group of scale 1, no offset. Codes: w_ij = code_ij - 128. Nothing is to be gained but by
// reading the matrix as fast as memory gives it, which libraries do for float32 alone.

#pragma once

#include "layer.h"

namespace {

enum { CODE = 3 };  // beside the dtypes of numbers.h

// As runtime/byte_codes.py lays it out.
struct ByteMatrix {
    const uint8_t *codes;
    const void *scale, *bias;  // (scale_rows, groups), (rows,); null: none
    const float *inverse;      // what x is multiplied with before (columns,); null: nothing
    long rows, columns, group, scale_rows, scale_dtype, bias_dtype;
    float step, offset;  // step: of the levels, beside the scale
};

struct Head {
    const void *matrix;
    int dtype;  // of its numbers
    const void *scale, *bias;
    long rows, columns, group, scale_rows;
    int scale_dtype, bias_dtype;
    float step, offset;
    const float *x;  // (tokens, columns)
    long tokens;
    void *y;  // (tokens, rows)
    int y_dtype;
    Tasks tasks;

    static constexpr long TOGETHER_ROWS = 4, TASK = 64, FAR = 8192;  // bytes from what is read to what is fetched

    static constexpr long size(int dtype) { return dtype == FLOAT32 ? 4 : dtype == CODE ? 1 : 2; }

    template <int DTYPE> INLINE static float single_number(const void *numbers, long i) {
        if constexpr (DTYPE == CODE)
            return (int)((const uint8_t *)numbers)[i] - 128;
        else
            return number(numbers, DTYPE, i);
    }

    template <int DTYPE> INLINE static single::Vector widened(const void *numbers, long i) {
        single::Vector v;
        const char *const at = (const char *)numbers + i * size(DTYPE);
        if constexpr (DTYPE == FLOAT32) {
            memcpy(&v, at, sizeof v);
        } else {
#if defined(__AVX512F__)
            if constexpr (DTYPE == CODE) {
                const __m128i bytes = _mm_xor_si128(_mm_loadu_si128((const __m128i *)at), _mm_set1_epi8((char)0x80));
                v = (single::Vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
            } else {
                const __m256i bits = _mm256_loadu_si256((const __m256i *)at);
                if constexpr (DTYPE == BFLOAT16)
                    v = (single::Vector)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
                else
                    v = (single::Vector)_mm512_cvtph_ps(bits);
            }
#elif defined(__AVX2__) && defined(__F16C__)
            if constexpr (DTYPE == CODE) {
                const __m128i bytes = _mm_xor_si128(_mm_loadl_epi64((const __m128i *)at), _mm_set1_epi8((char)0x80));
                v = (single::Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
            } else {
                const __m128i bits = _mm_loadu_si128((const __m128i *)at);
                if constexpr (DTYPE == BFLOAT16)
                    v = (single::Vector)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
                else
                    v = (single::Vector)_mm256_cvtph_ps(bits);
            }
#else
            for (int lane = 0; lane < single::LANES; lane++) v[lane] = single_number<DTYPE>(at, lane);
#endif
        }
        return v;
    }

    // TOGETHER_ROWS rows from `first` with tokens token .. token + TOKENS - 1.
    template <int DTYPE, int TOKENS> void multiply(long first, long token) const {
        const char *at[TOGETHER_ROWS];
        const float *const from = x + token * columns;
        const long groups = (columns + group - 1) / group;
        single::Vector totals[TOGETHER_ROWS][TOKENS] = {};
        float rests[TOGETHER_ROWS][TOKENS] = {};
        for (int r = 0; r < TOGETHER_ROWS; r++)
            at[r] = (const char *)matrix + std::min(first + r, rows - 1) * columns * size(DTYPE);
        for (long g = 0; g < groups; g++) {
            const long end = std::min(columns, (g + 1) * group);
            long i = g * group;
            single::Vector sums[TOGETHER_ROWS][TOKENS] = {};
            for (; i + single::LANES <= end; i += single::LANES) {
                single::Vector factor[TOKENS];
                UNROLL_ALL for (int t = 0; t < TOKENS; t++) memcpy(factor + t, from + t * columns + i, sizeof *factor);
                UNROLL_ALL for (int r = 0; r < TOGETHER_ROWS; r++) {
                    __builtin_prefetch(at[r] + i * size(DTYPE) + FAR, 0, 1);
                    const single::Vector numbers = widened<DTYPE>(at[r], i);
                    UNROLL_ALL for (int t = 0; t < TOKENS; t++) sums[r][t] += numbers * factor[t];
                }
            }
            float scaled[TOGETHER_ROWS];
            UNROLL_ALL for (int r = 0; r < TOGETHER_ROWS; r++) {
                scaled[r] = scale_of(std::min(first + r, rows - 1), g, groups);
                UNROLL_ALL for (int t = 0; t < TOKENS; t++) totals[r][t] += sums[r][t] * scaled[r];
            }
            if (i < end || offset) rest<DTYPE, TOKENS>(at, from, g * group, i, end, scaled, rests);
        }
        for (int r = 0; r < TOGETHER_ROWS && first + r < rows; r++)
            for (int t = 0; t < TOKENS; t++) {
                float sum = rests[r][t] + (bias ? number(bias, bias_dtype, first + r) : 0);
                for (int lane = 0; lane < single::LANES; lane++) sum += totals[r][t][lane];
                store(y, y_dtype, (token + t) * rows + first + r, sum);
            }
    }

    // What a group's vectors leave: the columns from i on, and the offset of all.
    template <int DTYPE, int TOKENS>
    void rest(const char *const *at, const float *from, long begin, long i, long end, const float *scaled,
              float (*rests)[TOKENS]) const {
        for (int t = 0; t < TOKENS; t++) {
            const float *const now = from + t * columns;
            float sum = 0;
            for (long j = begin; offset && j < end; j++) sum += now[j];
            for (int r = 0; r < TOGETHER_ROWS; r++) {
                float left = offset * sum;
                for (long j = i; j < end; j++) left += single_number<DTYPE>(at[r], j) * now[j];
                rests[r][t] += scaled[r] * left;
            }
        }
    }

    INLINE float scale_of(long row, long g, long groups) const {
        return scale ? step * number(scale, scale_dtype, scale_rows > 1 ? row * groups + g : 0) : step;
    }

    // A task's rows stay in the cache for all tokens.
    template <int DTYPE> void all_tokens(long begin, long end) const {
        long token = 0;
        for (; token + 4 <= tokens; token += 4)
            for (long row = begin; row < end; row += TOGETHER_ROWS) multiply<DTYPE, 4>(row, token);
        for (; token < tokens; token++)
            for (long row = begin; row < end; row += TOGETHER_ROWS) multiply<DTYPE, 1>(row, token);
    }

    void operator()() {
        tasks.run((rows + TASK - 1) / TASK, [&](long task) {
            const long begin = task * TASK, end = std::min(rows, begin + TASK);
            dtype == FLOAT32    ? all_tokens<FLOAT32>(begin, end)
            : dtype == BFLOAT16 ? all_tokens<BFLOAT16>(begin, end)
            : dtype == FLOAT16  ? all_tokens<FLOAT16>(begin, end)
                                : all_tokens<CODE>(begin, end);
        });
    }
};

// x (tokens, columns) of any dtype as float32, times `inverse`; null: there is no memory.
inline float *widened_input(const void *x, int dtype, long tokens, long columns, const float *inverse) {
    static thread_local Workspace workspace;
    float *const in = (float *)workspace.of(tokens * columns * sizeof(float));
    if (!in) return nullptr;
    read(x, dtype, tokens * columns, in);
    if (inverse)
        for (long token = 0; token < tokens; token++)
            for (long j = 0; j < columns; j++) in[token * columns + j] *= inverse[j];
    return in;
}

inline bool head(const void *weight, const void *bias, int dtype, long rows, long columns, const void *x, void *y,
                 int threads, Parallel *parallel) {
    const float *const in = widened_input(x, dtype, 1, columns, nullptr);
    if (!in) return false;
    Head job{weight, dtype, nullptr, bias, rows, columns, columns, 1, 0, dtype, 1, 0, in, 1, y, dtype};
    in_parallel(job, threads, parallel);
    return true;
}

inline bool bytes(const ByteMatrix &m, const void *x, int dtype, long tokens, void *y, int threads, Parallel *parallel) {
    const float *const in = widened_input(x, dtype, tokens, m.columns, m.inverse);
    if (!in) return false;
    Head job{m.codes,   CODE,       m.scale, m.bias,   m.rows, m.columns, m.group, m.scale_rows, (int)m.scale_dtype,
             (int)m.bias_dtype, m.step, m.offset, in, tokens, y, dtype};
    in_parallel(job, threads, parallel);
    return true;
}

// Rows first .. first + count - 1 decoded to bfloat16, (count, columns): for many tokens, which a library multiplies.
struct ByteRows {
    const ByteMatrix &matrix;
    long first, count;
    uint16_t *out;
    Tasks tasks;

    void operator()() {
        const long groups = (matrix.columns + matrix.group - 1) / matrix.group;
        tasks.run((count + 15) / 16, [&](long task) {
            for (long row = 16 * task; row < std::min(count, 16 * task + 16); row++) {
                const uint8_t *const codes = matrix.codes + (first + row) * matrix.columns;
                uint16_t *const to = out + row * matrix.columns;
                for (long g = 0; g < groups; g++) {
                    const long scale = matrix.scale_rows > 1 ? (first + row) * groups + g : 0;
                    const float step = matrix.step * (matrix.scale ? number(matrix.scale, matrix.scale_dtype, scale) : 1);
                    const long end = std::min(matrix.columns, (g + 1) * matrix.group);
                    for (long j = g * matrix.group; j < end; j++) {
                        const uint32_t bits = to_bits(step * ((int)codes[j] - 128 + matrix.offset));
                        to[j] = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // no NaN among them, so no branch
                    }
                }
            }
        });
    }
};

}  // namespace
