// Layers computed from blocks of codes: y = scale (Cu[codes] a + Cv[codes] b) + bias, for matrices that read one input.

#pragma once

#include <algorithm>
#include <cmath>
#include <new>

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

constexpr long TOGETHER = 4;      // tokens whose tables stand beside each other
constexpr long NEAR = 384 * 1024;  // bytes of tables that all blocks of rows read before the next are made

// Up to TOGETHER tokens through all matrices of a layer; every thread calls it. Tables are made for some stretches of
// columns at a time, so that they stay in a core's cache while the codes pass by.
template <int LIMBS> struct FewTokens {
    static constexpr long TABLES = STRETCH / 2 * LIMBS * TABLE;  // bytes of a stretch's
    const Layer &layer;
    const void *x;  // (tokens, columns), or null where a and b are given
    int dtype;
    long tokens;
    float *a, *b;  // (tokens, width): filled up with zeros; b null: none
    long width;    // at least the columns of every matrix, filled up
    float *scratch;  // (tokens, 3 columns)
    long most, part;  // stretches of the widest matrix, and those whose tables stand beside each other
    uint8_t *tables;  // (matrix, stretch of the part, token)
    float *scales;    // the same
    float *sums;      // (block of all matrices, token, 64): before the scale
    void *out;        // of each matrix (tokens of the call, rows), one after the other; token `before` is the first here
    int out_dtype;
    long all_tokens, before;
    Tasks *tabled, *multiplied;  // of each part
    Tasks transformed;

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
        long all = 0;
        for (long m = 0; m < layer.count; m++) all += blocks(m).count;
        for (long begin = 0; begin < most; begin += part) {
            Tasks &made = tabled[begin / part], &done = multiplied[begin / part];
            const long jobs = layer.count * part;
            made.run(jobs, [&](long job) { tabulate(job / part, begin, job % part); });
            made.wait(jobs);
            done.run(all, [&](long block) { multiply(block, begin); });
            if (begin + part < most) done.wait(all);
        }
    }

    long place(long m, long stretch, long token) const {  // of a table
        return (layer.matrices[m].tables * part + stretch) * tokens + token;
    }

    void tabulate(long m, long begin, long stretch) {
        const Matrix &matrix = layer.matrices[m];
        const Blocks shape = blocks(m);
        const long first = (begin + stretch) * STRETCH, slots = std::min(STRETCH, shape.slots - first);
        if (matrix.tables != m || slots <= 0) return;
        const Book book(matrix.codebook, matrix.levels, matrix.book_columns, shape);
        for (long token = 0; token < tokens; token++) {
            const long at = token * width + first * shape.per, to = place(m, stretch, token);
            scales[to] = make_tables<LIMBS>(shape, book, a + at, matrix.book_columns == 2 ? b + at : nullptr, slots,
                                            tables + to * TABLES);
        }
    }

    void multiply(long block, long begin) {
        float *const kept = sums + block * TOGETHER * BLOCK_ROWS;
        long m = 0, rows_before = 0;
        for (; block >= blocks(m).count; m++) {
            block -= blocks(m).count;
            rows_before += layer.matrices[m].rows;
        }
        const Matrix &matrix = layer.matrices[m];
        const Blocks shape = blocks(m);
        alignas(64) float y[TOGETHER][BLOCK_ROWS] = {};
        if (begin) memcpy(y, kept, sizeof y);
        for (long stretch = 0; stretch < part && begin + stretch < stretches(shape); stretch++) {
            const long first = (begin + stretch) * STRETCH, slots = std::min(STRETCH, shape.slots - first);
            const uint8_t *const codes = matrix.blocks + block * shape.bytes + first / STEP * shape.step_bytes;
            for (long token = 0; token < tokens; token++) {
                const long at = place(m, stretch, token);
                (shape.bits == 3 ? look_up<true, LIMBS> : look_up<false, LIMBS>)(codes, tables + at * TABLES, slots,
                                                                                scales[at], y[token]);
            }
        }
        if (begin + part < most) {
            memcpy(kept, y, sizeof y);
            return;
        }
        const long first = block * BLOCK_ROWS, end = std::min(matrix.rows, first + BLOCK_ROWS);
        for (long row = first; row < end; row++) {
            const float scale = matrix.scale ? number(matrix.scale, matrix.scale_dtype, matrix.scales > 1 ? row : 0) : 1;
            const float bias = matrix.bias ? number(matrix.bias, matrix.bias_dtype, row) : 0;
            for (long token = 0; token < tokens; token++)
                store(out, out_dtype, all_tokens * rows_before + (before + token) * matrix.rows + row,
                      scale * matrix.factor * y[token][row - first] + bias);
        }
    }
};

// All tokens of a layer: those of x, or with x null those of a and b (tokens, columns). false: there is no memory.
template <int LIMBS>
bool run_layer(const Layer &layer, const void *x, int dtype, const float *a, const float *b, long tokens, void *out,
                      int out_dtype, int threads, Parallel *parallel) {
    static thread_local Workspace workspace;
    typedef FewTokens<LIMBS> Job;
    long width = 0, most = 0, blocks = 0;
    for (long m = 0; m < layer.count; m++) {
        const Blocks shape(layer.matrices[m].rows, layer.columns, layer.matrices[m].levels);
        width = std::max(width, shape.width());
        most = std::max(most, Job::stretches(shape));
        blocks += shape.count;
    }
    const long group = std::min(TOGETHER, std::max(tokens, 1L)), size = width * (long)sizeof(float) * group;
    const long part = std::min(most, std::max(1L, NEAR / (layer.count * group * Job::TABLES)));
    const long places = layer.count * part * group, parts = (most + part - 1) / part;
    const long scratch = x ? (3 * layer.columns * (long)sizeof(float) * group + 63) / 64 * 64 : 0;
    const long sums = parts > 1 ? blocks * TOGETHER * BLOCK_ROWS * (long)sizeof(float) : 0;
    char *const space = workspace.of(2 * size + scratch + sums + places * (Job::TABLES + 4) + 64 + 2 * parts * sizeof(Tasks));
    if (!space) return false;
    memset(space, 0, 2 * size);
    for (long before = 0; before < tokens; before += group) {
        const long now = std::min(group, tokens - before);
        Job job{layer, x ? (const char *)x + before * layer.columns * (dtype == FLOAT32 ? 4 : 2) : nullptr, dtype, now};
        job.width = width, job.most = most, job.part = part;
        job.a = (float *)space, job.b = (float *)(space + size);
        job.scratch = (float *)(space + 2 * size), job.sums = (float *)(space + 2 * size + scratch);
        job.tables = (uint8_t *)job.sums + sums, job.scales = (float *)(job.tables + places * Job::TABLES);
        job.tabled = new ((char *)job.scales + (places * 4 + 63) / 64 * 64) Tasks[2 * parts];
        job.multiplied = job.tabled + parts;
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
