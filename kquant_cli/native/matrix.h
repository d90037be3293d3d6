// Matrices in blocks of codes, and layers of those that read one input: what the loops are told of them.

#pragma once

#include <algorithm>

#include "numbers.h"
#include "transform.h"

namespace {

// As runtime/layer_loops.py lays them out.
struct Matrix {
    const uint8_t *blocks;
    const float *codebook;  // (levels, book_columns)
    const void *scale, *bias, *col_scale;  // (rows,) or one number, (rows,), (columns,); null: none
    long rows, levels, book_columns, scales;
    long scale_dtype, bias_dtype, col_dtype;
    long tables;  // the first matrix that has the same levels, codebook, scale of columns and terms, and so the same tables
    long terms;   // 1: u a + v b; 2: u a and v b apart, which go through `output`, or where it is none come out so
    Bases output;
    float factor;  // of the codebook, beside the scale
};

struct Layer {
    long columns;
    Bases input;           // order 0: a and b are x; without `second` b is a
    const float *inverse;  // what x is multiplied with before; null: nothing
    long count;
    const Matrix *matrices;

    long rows() const {
        long sum = 0;
        for (long i = 0; i < count; i++) sum += matrices[i].rows;
        return sum;
    }

    long terms() const {
        long most = 1;
        for (long i = 0; i < count; i++) most = std::max(most, matrices[i].terms);
        return most;
    }
};

// y (rows,) of what came out of `transform_back`, scale and bias included, to `out`; work (rows,).
inline void put_output(const Matrix &matrix, float *y, float *work, void *out, int dtype) {
    const long rows = matrix.rows;
    const float one = matrix.scale && matrix.scales == 1 ? number(matrix.scale, matrix.scale_dtype, 0) : 1;
    for (long i = 0; i < rows; i++) y[i] *= one * matrix.factor * matrix.output.first[i];
    if (matrix.scales > 1) {
        read(matrix.scale, matrix.scale_dtype, rows, work);
        for (long i = 0; i < rows; i++) y[i] *= work[i];
    }
    if (matrix.bias) {
        read(matrix.bias, matrix.bias_dtype, rows, work);
        for (long i = 0; i < rows; i++) y[i] += work[i];
    }
    write(y, dtype, rows, out);
}

}  // namespace
