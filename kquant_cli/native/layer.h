// Layers computed from blocks of codes: y = scale (Cu[codes] a + Cv[codes] b) + bias, for matrices that read one input.

#pragma once

#include <algorithm>
#include <cmath>

#include "lookup.h"
#include "numbers.h"
#include "rows.h"
#include "threads.h"
#include "transform.h"

namespace {

// As runtime/layer_loops.py lays them out.
struct Matrix {
    const uint8_t *blocks;
    const float *codebook;  // (levels, book_columns)
    const void *scale, *bias;  // (rows,) or one number; null: none
    long rows, levels, book_columns, scales;
    long scale_dtype, bias_dtype;
    long tables;  // the first matrix that has the same levels and codebook, and so the same tables
    float factor;  // of the codebook, beside the scale
};

struct Layer {
    long columns, power, order;  // order 0: there is no transform
    const float *inverse;        // what x is multiplied with before; null: nothing
    const float *first, *second, *dense, *transposed;
    long count;
    const Matrix *matrices;

    long rows() const {
        long sum = 0;
        for (long i = 0; i < count; i++) sum += matrices[i].rows;
        return sum;
    }
};

constexpr long TOGETHER = 4;  // tokens whose tables stand beside each other

// Up to TOGETHER tokens through all matrices of a layer; every thread calls it.
template <int LIMBS> struct FewTokens {
    static constexpr long TABLES = STRETCH / 2 * LIMBS * TABLE;  // bytes of a stretch's
    const Layer &layer;
    const void *x;  // (tokens, columns), or null where a and b are given
    int dtype;
    long tokens;
    float *a, *b;  // (tokens, width): filled up with zeros; b null: none
    long width;    // at least the columns of every matrix, filled up
    float *scratch;  // (tokens, 3 columns)
    uint8_t *tables;  // of all matrices one after the other
    float *scales;    // (matrix, stretch, token)
    void *out;        // of each matrix (tokens of the call, rows), one after the other; token `before` is the first here
    int out_dtype;
    long all_tokens, before;
    Tasks transformed, tabled, multiplied;

    static long stretches(const Blocks &blocks) { return (blocks.slots + STRETCH - 1) / STRETCH; }

    Blocks blocks(long m) const { return Blocks(layer.matrices[m].rows, layer.columns, layer.matrices[m].levels); }

    void transform(long token) {
        float *const now = scratch + token * 3 * layer.columns;
        float *const to_a = a + token * width, *const to_b = b + token * width;
        const void *const from = (const char *)x + token * layer.columns * (dtype == FLOAT32 ? 4 : 2);
        if (!layer.order) {
            read(from, dtype, layer.columns, to_a);
            memcpy(to_b, to_a, layer.columns * sizeof(float));
            return;
        }
        read(from, dtype, layer.columns, now + 2 * layer.columns);
        transform_pair(now + 2 * layer.columns, layer.power, layer.order, layer.inverse, layer.first, layer.second,
                       layer.dense, layer.transposed, now, to_a, to_b);
    }

    void operator()() {
        if (x) {
            transformed.run(tokens, [&](long token) { transform(token); });
            transformed.wait(tokens);
        }
        long most = 0;
        for (long m = 0; m < layer.count; m++) most = std::max(most, stretches(blocks(m)));
        const long jobs = layer.count * most;
        tabled.run(jobs, [&](long job) { tabulate(job / most, job % most, most); });
        tabled.wait(jobs);
        long all = 0;
        for (long m = 0; m < layer.count; m++) all += blocks(m).count;
        multiplied.run(all, [&](long block) {
            long m = 0;
            for (; block >= blocks(m).count; m++) block -= blocks(m).count;
            multiply(m, block, most);
        });
    }

    uint8_t *tables_of(long m, long stretch, long token, long most) const {
        return tables + ((layer.matrices[m].tables * most + stretch) * tokens + token) * TABLES;
    }

    void tabulate(long m, long stretch, long most) {
        const Matrix &matrix = layer.matrices[m];
        const Blocks shape = blocks(m);
        const long first = stretch * STRETCH, slots = std::min(STRETCH, shape.slots - first);
        if (matrix.tables != m || slots <= 0) return;
        const Book book(matrix.codebook, matrix.levels, matrix.book_columns, shape);
        for (long token = 0; token < tokens; token++) {
            const long at = token * width + first * shape.per;
            scales[(m * most + stretch) * tokens + token] = make_tables<LIMBS>(
                shape, book, a + at, matrix.book_columns == 2 ? b + at : nullptr, slots, tables_of(m, stretch, token, most));
        }
    }

    void multiply(long m, long block, long most) {
        const Matrix &matrix = layer.matrices[m];
        const Blocks shape = blocks(m);
        alignas(64) float y[TOGETHER][BLOCK_ROWS] = {};
        for (long stretch = 0; stretch < stretches(shape); stretch++) {
            const long first = stretch * STRETCH, slots = std::min(STRETCH, shape.slots - first);
            const uint8_t *const codes = matrix.blocks + block * shape.bytes + first / STEP * shape.step_bytes;
            for (long token = 0; token < tokens; token++) {
                const float scale = scales[(matrix.tables * most + stretch) * tokens + token];
                const uint8_t *const table = tables_of(m, stretch, token, most);
                (shape.bits == 3 ? look_up<true, LIMBS> : look_up<false, LIMBS>)(codes, table, slots, scale, y[token]);
            }
        }
        long before_m = 0;
        for (long i = 0; i < m; i++) before_m += layer.matrices[i].rows;
        const long begin = block * BLOCK_ROWS, end = std::min(matrix.rows, begin + BLOCK_ROWS);
        for (long row = begin; row < end; row++) {
            const float scale = matrix.scale ? number(matrix.scale, matrix.scale_dtype, matrix.scales > 1 ? row : 0) : 1;
            const float bias = matrix.bias ? number(matrix.bias, matrix.bias_dtype, row) : 0;
            for (long token = 0; token < tokens; token++)
                store(out, out_dtype, all_tokens * before_m + (before + token) * matrix.rows + row,
                      scale * matrix.factor * y[token][row - begin] + bias);
        }
    }
};

// All tokens of a layer: those of x, or with x null those of a and b (tokens, columns). false: there is no memory.
template <int LIMBS>
bool run_layer(const Layer &layer, const void *x, int dtype, const float *a, const float *b, long tokens, void *out,
                      int out_dtype, int threads, Parallel *parallel) {
    static thread_local Workspace workspace;
    long width = 0, most = 0;
    for (long m = 0; m < layer.count; m++) {
        const Blocks shape(layer.matrices[m].rows, layer.columns, layer.matrices[m].levels);
        width = std::max(width, shape.width());
        most = std::max(most, FewTokens<LIMBS>::stretches(shape));
    }
    const long group = std::min(TOGETHER, tokens), size = width * (long)sizeof(float) * group;
    const long scratch = (x ? (3 * layer.columns * (long)sizeof(float) * group + 63) / 64 * 64 : 0);
    const long tables = layer.count * most * group * FewTokens<LIMBS>::TABLES, scales = layer.count * most * group * 4;
    char *const space = workspace.of(2 * size + scratch + tables + scales);
    if (!space) return false;
    memset(space, 0, 2 * size);
    for (long before = 0; before < tokens; before += group) {
        const long now = std::min(group, tokens - before);
        FewTokens<LIMBS> job{layer, x ? (const char *)x + before * layer.columns * (dtype == FLOAT32 ? 4 : 2) : nullptr, dtype, now};
        job.width = width;
        job.a = (float *)space, job.b = (float *)(space + size);
        job.scratch = (float *)(space + 2 * size), job.tables = (uint8_t *)space + 2 * size + scratch;
        job.scales = (float *)(job.tables + tables);
        job.out = out, job.out_dtype = out_dtype, job.all_tokens = tokens, job.before = before;
        for (long token = 0; !x && token < now; token++) {
            const long from = (before + token) * layer.columns;
            memcpy(job.a + token * width, a + from, layer.columns * sizeof(float));
            if (b) memcpy(job.b + token * width, b + from, layer.columns * sizeof(float));
        }
        in_parallel(job, threads, parallel);
    }
    return true;
}

}  // namespace
