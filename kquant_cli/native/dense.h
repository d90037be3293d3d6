// Blocks of codes as dense weights, for products with many tokens, which a library does.
//
// For the annealed encoder's two bases A and B the product with A^T x asks for one matrix, not two (bases/coupled.py):
//
//     A u + B v = A (u + Q v),    Q = D_2 T^T        so a row is    w = u + eps_2 * T^T v
//
// Sixteen rows are transformed at a time, as the lanes of vectors, and a tile is stored as [column][row].

#pragma once

#include "layer.h"

namespace {

struct Decoding {
    const Layer &layer;
    const Matrix &matrix;
    long first, count;
    void *u;
    float *v;  // null: folded into u
    int dtype;
    Tasks tasks;
    std::atomic<bool> failed{false};

    void operator()() {
        const Blocks blocks(matrix.rows, layer.columns, matrix.levels);
        const Book book(matrix.codebook, matrix.levels, matrix.book_columns, blocks);
        static thread_local Workspace workspace;
        const long size = blocks.width() * sizeof(rows::Vector);
        char *const space = workspace.of(2 * size + (layer.order + 1) * sizeof(rows::Vector));
        if (!space) {
            failed = true;
            return;
        }
        rows::Vector *const x = (rows::Vector *)space, *const y = (rows::Vector *)(space + size);
        tasks.run(4 * count, [&](long task) {
            const long block = task / 4, quarter = task % 4;
            indices(blocks, matrix.blocks + (first + block) * blocks.bytes, quarter, book, x, y);
            if (!v && layer.order) {
                const rows::Transform transform{layer.power, layer.order, layer.dense, layer.transposed};
                rows::adjoint(transform, y, (rows::Vector *)(space + 2 * size));
                for (long h = 0; h < layer.power; h++)
                    for (long c = 0; c < layer.order; c++)
                        x[h * layer.order + c] += y[h * layer.order + c] * layer.second[c * layer.power + h];
            } else if (!v && matrix.book_columns == 2) {
                for (long j = 0; j < layer.columns; j++) x[j] += y[j];
            }
            put_rows(block, quarter, x, u, dtype);
            if (v) put_rows(block, quarter, y, v, FLOAT32);
        });
    }

    void put_rows(long block, long quarter, const rows::Vector *from, void *to, int dtype) const {
        const long row = block * BLOCK_ROWS + quarter * 16, stride = count * BLOCK_ROWS;
        rows::Vector scale = matrix.factor - rows::Vector{};
        for (long i = 0; matrix.scale && i < 16; i++) {
            const long at = std::min(matrix.rows - 1, first * BLOCK_ROWS + row + i);
            scale[i] *= number(matrix.scale, matrix.scale_dtype, matrix.scales > 1 ? at : 0);
        }
        for (long j = 0; j < layer.columns; j++) {
            const rows::Vector value = from[j] * scale;
            if (dtype == FLOAT32) {
                memcpy((float *)to + j * stride + row, &value, sizeof value);
            } else {
                for (int i = 0; i < 16; i++) ((uint16_t *)to)[j * stride + row + i] = to_bfloat(value[i]);
            }
        }
    }

    // u and v of 16 rows of a block, [column][row].
    static void indices(const Blocks &blocks, const uint8_t *block, long quarter, const Book &book, rows::Vector *u,
                        rows::Vector *v) {
        const int upper = quarter / 2, odd = quarter % 2;
        for (long slot = 0; slot < blocks.slots; slot++) {
            const long s = slot % 8, side = slot % STEP / 8;
            const uint8_t *const at = block + slot / STEP * blocks.step_bytes + 32 * side;
            alignas(64) uint8_t index[32];
            for (int i = 0; i < 32; i++) {  // as index_of, which a compiler turns into vectors
                const long q = 3 * (s - 6);
                index[i] = blocks.bits != 3 ? at[64 * s + i] >> 4 * upper & 15
                           : s < 6          ? at[64 * s + i] >> 3 * upper & 7
                                            : at[64 * (q + 2 * upper) + i] >> 6 |
                                         (at[64 * (q + 1) + i] >> (6 + upper) & 1) << 2;
            }
            rows::Integers lanes;
            for (int i = 0; i < 16; i++) lanes[i] = index[2 * i + odd];
            for (int p = 0; p < blocks.per; p++) {
                u[slot * blocks.per + p] = pick(book.u[p], lanes);
                v[slot * blocks.per + p] = pick(book.v[p], lanes);
            }
        }
    }

    INLINE static rows::Vector pick(const float *table, rows::Integers index) {
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
        for (int i = 0; i < 16; i++) found[i] = table[index[i]];
        return found;
#endif
    }
};

inline bool decode(const Layer &layer, long first, long count, void *u, float *v, int dtype, int threads,
                   Parallel *parallel) {
    Decoding job{layer, layer.matrices[0], first, count, u, v, dtype};
    in_parallel(job, threads, parallel);
    return !job.failed;
}

struct FirstTransform {
    const Layer &layer;
    const void *x;
    int dtype;
    long tokens;
    void *a;
    int a_dtype;
    Tasks tasks;
    std::atomic<bool> failed{false};

    void operator()() {
        static thread_local Workspace workspace;
        const long size = layer.columns;
        float *const space = (float *)workspace.of((4 * size + 64) * sizeof(float));
        if (!space) {
            failed = true;
            return;
        }
        float *const to = space + 2 * size, *const from = space + 3 * size;
        tasks.run(tokens, [&](long token) {
            read((const char *)x + token * size * (dtype == FLOAT32 ? 4 : 2), dtype, size, from);
            transform_pair(from, layer.power, layer.order, layer.inverse, layer.first, nullptr, layer.dense,
                           layer.transposed, space, to, nullptr);
            if (a_dtype == FLOAT32)
                memcpy((float *)a + token * size, to, size * sizeof(float));
            else
                for (long i = 0; i < size; i++) ((uint16_t *)a)[token * size + i] = to_bfloat(to[i]);
        });
    }
};

inline bool transform_first(const Layer &layer, const void *x, int dtype, long tokens, void *a, int a_dtype, int threads,
                            Parallel *parallel) {
    FirstTransform job{layer, x, dtype, tokens, a, a_dtype};
    in_parallel(job, threads, parallel);
    return !job.failed;
}

}  // namespace
