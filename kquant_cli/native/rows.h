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

constexpr long NEAR = 256;  // vectors that stay in the fastest cache

// The stages from `half` = `from` to below `to`, over `power` positions of `order` vectors each. Two at once, where there
// are two: half the passes over memory.
static void stages(Vector *x, long power, long order, long from, long to) {
    long half = from;
    for (; 4 * half <= to; half *= 4) {
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
    if (half < to) {
        const long step = half * order;
        for (long begin = 0; begin < power; begin += 2 * half)
            for (Vector *a = x + begin * order; a < x + begin * order + step; a++) {
                const Vector p = a[0] + a[step], q = a[0] - a[step];
                a[0] = p;
                a[step] = q;
            }
    }
}

// Four stages at once, from `half` on.
static void four_stages(Vector *x, long power, long order, long half) {
    const long step = half * order;
    for (long begin = 0; begin < power; begin += 16 * half)
        for (long i = 0; i < step; i++) {
            Vector *const a = x + begin * order + i, v[16];
#pragma GCC unroll 16
            for (int k = 0; k < 16; k++) v[k] = a[k * step];
#pragma GCC unroll 4
            for (int apart = 1; apart < 16; apart *= 2)
#pragma GCC unroll 16
                for (int k = 0; k < 16; k++)
                    if (!(k & apart)) {
                        const Vector p = v[k] + v[k + apart], q = v[k] - v[k + apart];
                        v[k] = p;
                        v[k + apart] = q;
                    }
#pragma GCC unroll 16
            for (int k = 0; k < 16; k++) a[k * step] = v[k];
        }
}

static void sylvester(Vector *x, long power, long order) {
    long near = 1;  // positions that are near
    while (2 * near <= power && 2 * near * order <= NEAR) near *= 2;
    for (long begin = 0; begin < power; begin += near) stages(x + begin * order, near, order, 1, near);
    for (; 16 * near <= power; near *= 16) four_stages(x, power, order, near);
    stages(x, power, order, near, power);
}

// COUNT rows of the matrix times `WIDTH` groups of `order` vectors that follow each other.
template <int COUNT, int WIDTH>
static inline void products(const Vector *x, long order, const float *c, Vector *out) {
    Vector sums[COUNT][WIDTH] = {};
    for (long k = 0; k < order; k++)
#pragma GCC unroll 8
        for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 4
            for (int w = 0; w < WIDTH; w++) sums[r][w] += c[r * order + k] * x[w * order + k];
#pragma GCC unroll 8
    for (int r = 0; r < COUNT; r++)
#pragma GCC unroll 4
        for (int w = 0; w < WIDTH; w++) out[w * order + r] = sums[r][w];
}

template <int WIDTH> static void multiply_groups(Vector *x, long order, const float *matrix, Vector *scratch) {
    long row = 0;
    for (; row + 4 <= order; row += 4) products<4, WIDTH>(x, order, matrix + row * order, scratch + row);
    for (; row < order; row++) products<1, WIDTH>(x, order, matrix + row * order, scratch + row);
    memcpy(x, scratch, WIDTH * order * sizeof(Vector));
}

// scratch: GROUPS * order vectors.
constexpr int GROUPS = 4;

static void multiply(Vector *x, long count, long order, const float *matrix, Vector *scratch) {
    for (; count >= GROUPS; count -= GROUPS, x += GROUPS * order) multiply_groups<GROUPS>(x, order, matrix, scratch);
    for (; count; count--, x += order) multiply_groups<1>(x, order, matrix, scratch);
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
