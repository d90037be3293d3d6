// The transforms of the annealed encoder's two bases on a vector (bases/coupled.py; bases/hadamard_dct.py):
//
//     of an input      a = A^T x = T^T (eps_1 * x),    b = B^T x = T (eps_2 * a),    T = H (x) C of size 2^k m
//     of an output     y = A p + B q = eps_1 * T (p + eps_2 * T^T q)
//
// A vector of 2^k m numbers is held as m rows of 2^k, so that both factors meet neighbouring numbers: H runs along the
// rows, and C combines whole rows. Vectors are those of GCC and Clang.

#pragma once

#include <cstring>
#include <utility>

#include "vectors.h"

namespace {

// A and B, as runtime/layer_loops.py lays them out. Order 0: none.
struct Bases {
    long power, order;
    const float *first;   // eps_1 over sqrt(power)
    const float *second;  // eps_2 over sqrt(power), as (order, power); null: A alone
    const float *dense, *transposed;  // C and C^T, (order, order)

    long size() const { return power * order; }
};

namespace single {

// One stage inside a vector: v[lane] + v[lane ^ STEP] below, v[lane ^ STEP] - v[lane] above.
template <int STEP> inline __attribute__((always_inline)) Vector stage(Vector v) {
    Integers partner;
    Vector sign, other;
    for (int lane = 0; lane < LANES; lane++) {
        partner[lane] = lane ^ STEP;
        sign[lane] = lane & STEP ? -1 : 1;
    }
#ifdef __clang__
    for (int lane = 0; lane < LANES; lane++) other[lane] = v[lane ^ STEP];
#else
    other = __builtin_shuffle(v, partner);
#endif
    return v * sign + other;
}

// Sylvester's matrix of order `size`, a power of two, unscaled, on one row; rows of at least LANES numbers are aligned.
void sylvester(float *row, long size) {
    if (size < LANES) {
        for (long half = 1; half < size; half *= 2)
            for (long i = 0; i < size; i++)
                if (!(i & half)) {
                    const float p = row[i], q = row[i + half];
                    row[i] = p + q;
                    row[i + half] = p - q;
                }
        return;
    }
    Vector *const x = (Vector *)row;
    const long count = size / LANES;
    for (long i = 0; i < count; i++) {
        Vector v = stage<2>(stage<1>(x[i]));
        if (LANES > 4) v = stage<4>(v);
        if (LANES > 8) v = stage<8>(v);
        x[i] = v;
    }
    long half = 1;
    for (; 4 * half <= count; half *= 4)  // two stages at once: half the passes over memory
        for (long begin = 0; begin < count; begin += 4 * half)
            for (Vector *a = x + begin; a < x + begin + half; a++) {
                const Vector p = a[0] + a[half], q = a[0] - a[half];
                const Vector r = a[2 * half] + a[3 * half], s = a[2 * half] - a[3 * half];
                a[0] = p + r;
                a[half] = q + s;
                a[2 * half] = p - r;
                a[3 * half] = q - s;
            }
    if (half < count)
        for (Vector *a = x; a < x + half; a++) {
            const Vector p = a[0] + a[half], q = a[0] - a[half];
            a[0] = p;
            a[half] = q;
        }
}

// out = C in: C (order, order), rows of `size`. COUNT rows of C at a time, so that a row of `in` is loaded once for all.
template <int COUNT> void combine_rows(const float *c, long order, const float *in, float *out, long size) {
    long h = 0;
    for (; h + 2 * LANES <= size; h += 2 * LANES) {
        Vector sums[COUNT][2] = {};
        for (long k = 0; k < order; k++) {
            const Vector *x = (const Vector *)(in + k * size + h);
            for (int r = 0; r < COUNT; r++) {
                sums[r][0] += c[r * order + k] * x[0];
                sums[r][1] += c[r * order + k] * x[1];
            }
        }
        for (int r = 0; r < COUNT; r++) memcpy(out + r * size + h, sums[r], sizeof sums[r]);
    }
    for (; h < size; h++)
        for (int r = 0; r < COUNT; r++) {
            float sum = 0;
            for (long k = 0; k < order; k++) sum += c[r * order + k] * in[k * size + h];
            out[r * size + h] = sum;
        }
}

void combine(const float *c, long order, const float *in, float *out, long size) {
    long row = 0;
    for (; row + 4 <= order; row += 4) combine_rows<4>(c + row * order, order, in, out + row * size, size);
    for (; row < order; row++) combine_rows<1>(c + row * order, order, in, out + row * size, size);
}

// Rows to a vector.
void scatter(const float *rows, long power, long order, float *out) {
    if (order == 1) {
        memcpy(out, rows, power * sizeof(float));
        return;
    }
    for (long h = 0; h < power; h++)
        for (long c = 0; c < order; c++) out[h * order + c] = rows[c * power + h];
}

// A vector to rows, times up to two others.
void gather(const float *x, const float *factor, const float *inverse, long power, long order, float *rows) {
    if (order == 1) {
        for (long i = 0; i < power; i++) rows[i] = factor ? x[i] * factor[i] : x[i];
        for (long i = 0; inverse && i < power; i++) rows[i] *= inverse[i];
        return;
    }
    for (long h = 0; h < power; h++)
        for (long c = 0; c < order; c++) {
            const long i = h * order + c;
            float value = x[i];
            if (inverse) value *= inverse[i];
            rows[c * power + h] = factor ? value * factor[i] : value;
        }
}

// T or T^T, unscaled, of rows in `now`; what is returned holds the result, `now` or `other`.
inline float *transformed(const Bases &bases, const float *matrix, float *now, float *other) {
    for (long c = 0; c < bases.order; c++) sylvester(now + c * bases.power, bases.power);
    if (bases.order == 1) return now;
    combine(matrix, bases.order, now, other, bases.power);
    return other;
}

}  // namespace single

// a and b of x. inverse: null, or what x is multiplied with before; b null: it is not wanted. workspace: two vectors,
// aligned to 64 bytes.
inline void transform_pair(const float *x, const Bases &bases, const float *inverse, float *workspace, float *a, float *b) {
    using namespace single;
    const long size = bases.size();
    float *now = workspace, *other = workspace + size;
    gather(x, bases.first, inverse, bases.power, bases.order, now);
    if (transformed(bases, bases.transposed, now, other) == other) std::swap(now, other);
    scatter(now, bases.power, bases.order, a);
    if (!b) return;
    for (long i = 0; i < size; i++) now[i] *= bases.second[i];
    scatter(transformed(bases, bases.dense, now, other), bases.power, bases.order, b);
}

// y over eps_1 and sqrt(power), in place of p, of p and q; q null: none. workspace as above.
inline void transform_back(float *p, const float *q, const Bases &bases, float *workspace) {
    using namespace single;
    const long size = bases.size();
    float *now = workspace, *other = workspace + size;
    if (q) {
        gather(q, nullptr, nullptr, bases.power, bases.order, now);
        if (transformed(bases, bases.transposed, now, other) == now) std::swap(now, other);
    }
    gather(p, nullptr, nullptr, bases.power, bases.order, now);
    for (long i = 0; q && i < size; i++) now[i] += bases.second[i] * other[i];
    scatter(transformed(bases, bases.dense, now, other), bases.power, bases.order, p);
}

}  // namespace
