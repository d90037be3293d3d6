// Layers computed from blocks of codes, for matrices that read one input:
//
//     y = scale (L_u Cu[codes] (c * a) + L_v Cv[codes] (c * b)) + bias
//
// with bases of the input in a and b, bases L_u and L_v of the output or none, and a scale of columns c or none.

#pragma once

#include <algorithm>
#include <cmath>
#include <new>

#include "dots.h"
#include "matrix.h"
#include "rows.h"
#include "threads.h"

namespace {

constexpr long TOGETHER = 4;      // tokens whose tables stand beside each other
constexpr long NEAR = 384 * 1024;  // bytes of tables that all blocks of rows read before the next are made

// Up to TOGETHER tokens through all matrices of a layer; every thread calls it. Tables are made for some stretches of
// columns at a time, so that they stay in a core's cache while the codes pass by.
template <int LIMBS> struct FewTokens {
    static constexpr long TABLES = STRETCH / 2 * LIMBS * TABLE;  // bytes of a stretch's, for one term
    const Layer &layer;
    const void *x;  // (tokens, columns), or null where a and b are given
    int dtype;
    long tokens, terms;  // of the matrix that has most
    float *a, *b;  // (tokens, width): filled up with zeros
    long width;    // at least the columns of every matrix, filled up
    float *scratch;  // (tokens, 3 columns)
    long most, part;  // stretches of the widest matrix, and those whose tables stand beside each other
    uint8_t *tables;  // (matrix, stretch of the part, token, term); or digits (dots.h)
    float *scales;    // of each
    float *sums;      // (block of all matrices, token, term, 64): before the scale
    float *apart;     // (block of all matrices, token, 4 * 64), see `apart_of`
    void *out;        // of each matrix (tokens of the call, rows), one after the other; token `before` is the first here
    int out_dtype;
    long all_tokens, before;
    Tasks *tabled, *multiplied;  // of each part
    Tasks transformed, finished;

    // Whether the terms of a matrix are products of bytes; else they are looked up.
    bool by_dots(const Matrix &matrix, const Blocks &shape, Offsets &offsets) const {
        const bool can = HAS_DOTS && matrix.terms == 2 && a == b && shape.per == 1;
        return can && offsets.read(matrix.codebook, matrix.levels);
    }

    static long stretches(const Blocks &blocks) { return (blocks.slots + STRETCH - 1) / STRETCH; }

    Blocks blocks(long m) const { return Blocks(layer.matrices[m].rows, layer.columns, layer.matrices[m].levels); }

    void transform(long token) {
        float *const now = scratch + token * 3 * layer.columns, *const to = a + token * width;
        const void *const from = (const char *)x + token * layer.columns * bytes_of(dtype);
        if (!layer.input.order) {
            read(from, dtype, layer.columns, to);
            for (long j = 0; layer.inverse && j < layer.columns; j++) to[j] *= layer.inverse[j];
            return;
        }
        read(from, dtype, layer.columns, now + 2 * layer.columns);
        transform_pair(now + 2 * layer.columns, layer.input, layer.inverse, now, to, b == a ? nullptr : b + token * width);
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
            if (begin + part < most || terms == 2) done.wait(all);
        }
        if (terms == 2) finished.run(layer.count * tokens, [&](long job) { finish(job / tokens, job % tokens); });
    }

    long place(long m, long stretch, long token) const {  // of a table, or of two
        return ((layer.matrices[m].tables * part + stretch) * tokens + token) * terms;
    }

    void tabulate(long m, long begin, long stretch) {
        const Matrix &matrix = layer.matrices[m];
        const Blocks shape = blocks(m);
        const long first = (begin + stretch) * STRETCH, slots = std::min(STRETCH, shape.slots - first);
        if (matrix.tables != m || slots <= 0) return;
        const Book book(matrix.codebook, matrix.levels, matrix.book_columns, shape);
        Offsets offsets;
        const bool digits = by_dots(matrix, shape, offsets);
        const long column = first * shape.per, columns = slots * shape.per;
        alignas(64) float factors[4 * STRETCH], scaled[2][4 * STRETCH];
        if (matrix.col_scale) {
            const long kept = std::min(columns, layer.columns - column);
            read((const char *)matrix.col_scale + column * bytes_of(matrix.col_dtype), matrix.col_dtype, kept, factors);
            memset(factors + kept, 0, (columns - kept) * sizeof(float));
        }
        for (long token = 0; token < tokens; token++) {
            const long at = token * width + column, to = place(m, stretch, token);
            const float *of_a = a + at, *of_b = matrix.book_columns == 2 ? b + at : nullptr;
            if (matrix.col_scale) {
                for (long j = 0; j < columns; j++) scaled[0][j] = of_a[j] * factors[j];
                for (long j = 0; of_b && j < columns; j++) scaled[1][j] = of_b[j] * factors[j];
                of_a = scaled[0], of_b = of_b ? scaled[1] : nullptr;
            }
            uint8_t *const now = tables + to * TABLES;
            if (digits) {
                scales[to] = make_digits<LIMBS>(of_a, slots, now);
            } else if (matrix.terms == 1) {
                scales[to] = make_tables<LIMBS>(shape, book.u, of_a, book.v, of_b, slots, LIMBS, now);
            } else {
                scales[to] = make_tables<LIMBS>(shape, book.u, of_a, book.u, nullptr, slots, 2 * LIMBS, now);
                scales[to + 1] =
                    make_tables<LIMBS>(shape, book.v, of_b, book.v, nullptr, slots, 2 * LIMBS, now + LIMBS * TABLE);
            }
        }
    }

    void multiply(long block, long begin) {
        float *const kept = sums + block * tokens * terms * BLOCK_ROWS;
        const long block_of_all = block;
        long m = 0, rows_before = 0;
        for (; block >= blocks(m).count; m++) {
            block -= blocks(m).count;
            rows_before += layer.matrices[m].rows;
        }
        const Matrix &matrix = layer.matrices[m];
        const Blocks shape = blocks(m);
        const long stride = matrix.terms * BLOCK_ROWS, size = tokens * stride * sizeof(float);
        alignas(64) float y[TOGETHER * 2 * BLOCK_ROWS];
        if (begin)
            memcpy(y, kept, size);
        else
            memset(y, 0, size);
        Offsets offsets;
        const bool digits = by_dots(matrix, shape, offsets);
        const auto add = shape.bits == 3 ? (matrix.terms == 2 ? look_up<true, LIMBS, 2> : look_up<true, LIMBS, 1>)
                                         : (matrix.terms == 2 ? look_up<false, LIMBS, 2> : look_up<false, LIMBS, 1>);
        for (long stretch = 0; stretch < part && begin + stretch < stretches(shape); stretch++) {
            const long first = (begin + stretch) * STRETCH, slots = std::min(STRETCH, shape.slots - first);
            const uint8_t *const codes = matrix.blocks + block * shape.bytes + first / STEP * shape.step_bytes;
            for (long token = 0; token < tokens; token++) {
                const long at = place(m, stretch, token);
                if (digits)
                    (shape.bits == 3 ? dots<true, LIMBS> : dots<false, LIMBS>)(codes, tables + at * TABLES, slots, offsets,
                                                                              scales[at], y + token * stride);
                else
                    add(codes, tables + at * TABLES, slots, scales + at, y + token * stride);
            }
        }
        if (begin + part < most) {
            memcpy(kept, y, size);
            return;
        }
        if (matrix.terms == 2) {
            for (long token = 0; token < tokens; token++)
                for (long term = 0; term < 2; term++) {
                    const float *const from = y + token * stride + term * BLOCK_ROWS;
                    float *const to = apart_of(block_of_all - block, shape, token, term) + block * BLOCK_ROWS;
                    for (long place = 0; place < BLOCK_ROWS; place++) to[digits ? row_of(place) : place] = from[place];
                }
            return;
        }
        const long first = block * BLOCK_ROWS, end = std::min(matrix.rows, first + BLOCK_ROWS);
        for (long row = first; row < end; row++) {
            const float scale = matrix.scale ? number(matrix.scale, matrix.scale_dtype, matrix.scales > 1 ? row : 0) : 1;
            const float bias = matrix.bias ? number(matrix.bias, matrix.bias_dtype, row) : 0;
            for (long token = 0; token < tokens; token++)
                store(out, out_dtype, all_tokens * rows_before + (before + token) * matrix.rows + row,
                      scale * matrix.factor * y[token * stride + row - first] + bias);
        }
    }

    // Of a matrix with two terms before which there are so many blocks: u a (rows, filled up), v b, and two workspaces.
    float *apart_of(long blocks_before, const Blocks &shape, long token, long which) const {
        return apart + 4 * BLOCK_ROWS * (blocks_before * tokens + shape.count * token) + which * BLOCK_ROWS * shape.count;
    }

    void finish(long m, long token) {
        const Matrix &matrix = layer.matrices[m];
        if (matrix.terms == 1) return;
        long rows_before = 0, blocks_before = 0;
        for (long i = 0; i < m; i++) rows_before += layer.matrices[i].rows, blocks_before += blocks(i).count;
        const Blocks shape = blocks(m);
        float *const p = apart_of(blocks_before, shape, token, 0), *const q = apart_of(blocks_before, shape, token, 1);
        float *const work = apart_of(blocks_before, shape, token, 2);
        const auto at = [&](long term) {
            const long begin = (term * all_tokens + before + token) * matrix.rows + all_tokens * rows_before;
            return (char *)out + begin * bytes_of(out_dtype);
        };
        if (matrix.output.order) {
            transform_back(p, q, matrix.output, work);
            put_output(matrix, p, work, at(0), out_dtype);
        } else {
            write(p, out_dtype, matrix.rows, at(0));
            write(q, out_dtype, matrix.rows, at(1));
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
    const long terms = layer.terms(), block = group * BLOCK_ROWS * (long)sizeof(float);
    const long part = std::min(most, std::max(1L, NEAR / (layer.count * group * terms * Job::TABLES)));
    const long places = layer.count * part * group * terms, parts = (most + part - 1) / part;
    const long scratch = x ? (3 * layer.columns * (long)sizeof(float) * group + 63) / 64 * 64 : 0;
    const long sums = parts > 1 ? blocks * terms * block : 0, apart = terms == 2 ? blocks * 4 * block : 0;
    char *const space = workspace.of(2 * size + scratch + sums + apart + places * (Job::TABLES + 4) + 64 + 2 * parts * sizeof(Tasks));
    if (!space) return false;
    memset(space, 0, 2 * size);
    for (long before = 0; before < tokens; before += group) {
        const long now = std::min(group, tokens - before);
        Job job{layer, x ? (const char *)x + before * layer.columns * bytes_of(dtype) : nullptr, dtype, now, terms};
        job.width = width, job.most = most, job.part = part;
        job.a = (float *)space, job.b = (x ? layer.input.second : b) ? (float *)(space + size) : job.a;
        job.scratch = (float *)(space + 2 * size), job.sums = (float *)(space + 2 * size + scratch);
        job.apart = (float *)((char *)job.sums + sums);
        job.tables = (uint8_t *)job.apart + apart, job.scales = (float *)(job.tables + places * Job::TABLES);
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
