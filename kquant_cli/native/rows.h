// The transform T = H (x) C (bases/hadamard_dct.py) of a block of rows, which are the lanes of vectors.
//
// An array is [position][lane], so that every step, the butterflies included, is one vector instruction a position and
// no lanes are exchanged. Vectors are those of GCC and Clang.

#pragma once

#include <cstdint>
#include <cstring>

namespace rows {

constexpr int LANES = 16;
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

// T = H (x) C: the Sylvester matrix of order 2^k, unscaled, times a dense matrix of odd order m; size = 2^k m.
struct Transform {
    long power, order;
    const float *dense, *transposed;  // C and C^T, (m, m)
};

static void sylvester(Vector *x, long power, long order) {
    long half = 1;
    for (; 4 * half <= power; half *= 4) {  // two stages at once: half the passes over memory
        const long step = half * order;
        for (long begin = 0; begin < power; begin += 4 * half) {
            Vector *a = x + begin * order;
            for (long i = 0; i < step; i++, a++) {
                const Vector p = a[0] + a[step], q = a[0] - a[step];
                const Vector r = a[2 * step] + a[3 * step], s = a[2 * step] - a[3 * step];
                a[0] = p + r;
                a[step] = q + s;
                a[2 * step] = p - r;
                a[3 * step] = q - s;
            }
        }
    }
    if (half < power) {
        const long step = half * order;
        for (Vector *a = x; a < x + step; a++) {
            const Vector p = a[0] + a[step], q = a[0] - a[step];
            a[0] = p;
            a[step] = q;
        }
    }
}

static void multiply(Vector *x, long count, long order, const float *matrix, Vector *scratch) {
    for (long begin = 0; begin < count; begin++, x += order) {
        long row = 0;
        for (; row + 4 <= order; row += 4) {
            const float *c = matrix + row * order;
            Vector p{}, q{}, r{}, s{};
            for (long k = 0; k < order; k++) {
                p += c[k] * x[k];
                q += c[k + order] * x[k];
                r += c[k + 2 * order] * x[k];
                s += c[k + 3 * order] * x[k];
            }
            scratch[row] = p;
            scratch[row + 1] = q;
            scratch[row + 2] = r;
            scratch[row + 3] = s;
        }
        for (; row < order; row++) {
            Vector p{};
            for (long k = 0; k < order; k++) p += matrix[row * order + k] * x[k];
            scratch[row] = p;
        }
        memcpy(x, scratch, order * sizeof(Vector));
    }
}

static void apply(const Transform &t, Vector *x, Vector *scratch) {
    if (t.order > 1) multiply(x, t.power, t.order, t.dense, scratch);
    sylvester(x, t.power, t.order);
}

static void adjoint(const Transform &t, Vector *x, Vector *scratch) {
    sylvester(x, t.power, t.order);
    if (t.order > 1) multiply(x, t.power, t.order, t.transposed, scratch);
}

}  // namespace rows
