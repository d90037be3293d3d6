// Blocks of codes as dense weights, for products with many tokens, which a library does.
//
// For the annealed encoder's two bases A and B a product asks for one matrix, not two (bases/coupled.py):
//
//     A u + B v = A (u + Q v),    Q = D_2 T^T
//
// of the input, where the product is with A^T x, a row is    w = u + eps_2 * T^T v;
// of the output, where A follows the product, a column is the same.
//
// Sixteen rows, or columns, are transformed at a time, as the lanes of vectors.

#pragma once

#include "floats.h"
#include "layer.h"

namespace {

// u + Q v, in place of u.
inline void fold(const Bases &bases, rows::Vector *u, rows::Vector *v, rows::Vector *scratch) {
    rows::adjoint({bases.power, bases.order, bases.dense, bases.transposed}, v, scratch);
    for (long h = 0; h < bases.power; h++)
        for (long c = 0; c < bases.order; c++)
            u[h * bases.order + c] += v[h * bases.order + c] * bases.second[c * bases.power + h];
}

// Rows of blocks first .. first + count - 1, the scale of rows included.
struct RowsOfWeight {
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
        char *const space = workspace.of(2 * size + (rows::GROUPS * layer.input.order + 1) * sizeof(rows::Vector));
        if (!space) {
            failed = true;
            return;
        }
        rows::Vector *const x = (rows::Vector *)space, *const y = (rows::Vector *)(space + size);
        tasks.run(4 * count, [&](long task) {
            const long block = task / 4, quarter = task % 4;
            const uint8_t *const codes = matrix.blocks + (first + block) * blocks.bytes;
            (blocks.bits == 3 ? points<true> : points<false>)(blocks, codes, blocks.slots, quarter, book, x, y);
            for (long j = 0; matrix.col_scale && j < layer.columns; j++) {
                const float factor = number(matrix.col_scale, matrix.col_dtype, j);
                x[j] *= factor, y[j] *= factor;
            }
            if (!v && layer.input.second)
                fold(layer.input, x, y, (rows::Vector *)(space + 2 * size));
            else if (!v && matrix.book_columns == 2)
                for (long j = 0; j < layer.columns; j++) x[j] += y[j];
            put_rows(block, quarter, x, u, dtype);
            if (v) put_rows(block, quarter, y, v, FLOAT32);
        });
    }

    void put_rows(long block, long quarter, const rows::Vector *from, void *to, int dtype) const {
        const long row = block * BLOCK_ROWS + quarter * 16;
        rows::Vector scale = matrix.factor - rows::Vector{};
        for (long i = 0; matrix.scale && i < 16; i++) {
            const long at = std::min(matrix.rows - 1, first * BLOCK_ROWS + row + i);
            scale[i] *= number(matrix.scale, matrix.scale_dtype, matrix.scales > 1 ? at : 0);
        }
        for (long j = 0; j < layer.columns; j += 16) {
            alignas(64) float square[16][16];  // [row][column]
            transpose(from + j, scale, square);
            const long kept = std::min(16L, layer.columns - j);
            for (long i = 0; i < 16; i++) put(square[i], kept, dtype, to, (row + i) * layer.columns + j);
        }
    }
};

constexpr long PANEL = 64;  // columns, a whole number of steps of slots at any number of levels

// Columns of panels first .. first + count - 1, as (columns, rows): what is transformed together is then written to
// neighbouring places. Folded over the output's bases, scale of columns included; that of rows comes after A.
struct ColumnsOfWeight {
    const Layer &layer;
    const Matrix &matrix;
    long first, count;
    void *out;
    int dtype;
    Tasks tasks;
    std::atomic<bool> failed{false};

    void operator()() {
        const Blocks blocks(matrix.rows, layer.columns, matrix.levels);
        const Book book(matrix.codebook, matrix.levels, matrix.book_columns, blocks);
        static thread_local Workspace workspace;
        const long width = STEP * blocks.per, height = blocks.count * BLOCK_ROWS;  // of a step
        rows::Vector *const space = (rows::Vector *)workspace.of(
            (2 * blocks.per * height + 2 * width + rows::GROUPS * matrix.output.order) * sizeof(rows::Vector));
        if (!space) {
            failed = true;
            return;
        }
        rows::Vector *const u = space, *const v = u + blocks.per * height;  // [16 columns][row]
        rows::Vector *const x = v + blocks.per * height, *const y = x + width, *const scratch = y + width;
        const long begin = first * PANEL / width, end = std::min(blocks.slots / STEP, (first + count) * PANEL / width);
        tasks.run(end - begin, [&](long step) {
            const uint8_t *const codes = matrix.blocks + (begin + step) * blocks.step_bytes;
            const rows::Vector one = 1 - rows::Vector{};
            for (long row = 0; row < height; row += 16) {
                const uint8_t *const at = codes + row / BLOCK_ROWS * blocks.bytes;
                const long quarter = row % BLOCK_ROWS / 16;
                (blocks.bits == 3 ? points<true> : points<false>)(blocks, at, STEP, quarter, book, x, y);
                for (long group = 0; group < blocks.per; group++) {
                    transpose(x + 16 * group, one, *(float(*)[16][16])(u + group * height + row));
                    transpose(y + 16 * group, one, *(float(*)[16][16])(v + group * height + row));
                }
            }
            for (long group = 0; group < blocks.per; group++) {
                rows::Vector *const w = u + group * height;
                fold(matrix.output, w, v + group * height, scratch);
                put_columns(w, step * width + 16 * group);
            }
        });
    }

    void put_columns(const rows::Vector *w, long at) const {  // 16 columns, the first of which is number `at` of `out`
        const long column = first * PANEL + at, kept = std::min(16L, layer.columns - column);
        rows::Vector scale = 1 - rows::Vector{};
        for (long i = 0; matrix.col_scale && i < kept; i++)
            scale[i] = number(matrix.col_scale, matrix.col_dtype, column + i);
        for (long row = 0; row < matrix.rows; row += 16) {
            alignas(64) float square[16][16];  // [column][row]
            transpose(w + row, scale, square);
            for (long i = 0; i < kept; i++)
                put(square[i], std::min(16L, matrix.rows - row), dtype, out, (at + i) * matrix.rows + row);
        }
    }
};

}  // namespace
