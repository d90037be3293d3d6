// The annealed encoder's sweeps on a CPU (kquant_cli/encoders/annealed/annealing.py has the formulas, and the same in torch).
//
// A block of LANES rows is annealed at a time, with the rows as the lanes of vectors: an array is [position][lane], so
// that every step, the butterflies of the Hadamard transform included, is one vector instruction a position, and a
// block stays in a core's cache from the first sweep to the last. Vectors are those of GCC and Clang.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "rows.h"

namespace {

using namespace rows;

constexpr int MOST_LEVELS = 256;

inline Vector all(float value) { return value - Vector{}; }

inline Vector larger(Vector a, Vector b) { return a > b ? a : b; }

// 2^x for x <= 0, relative error 1e-4: the nearest whole exponent, and a cubic for the rest. Below -126: 2^-126.
inline Vector exp2_of_negative(Vector x) {
    x = larger(x, all(-126.0f));
    const Vector rounder = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number, kept in the low bits
    const Vector rounded = x + rounder;
    const Vector rest = x - (rounded - rounder);
    Vector power = all(0.05550410866f);
    power = power * rest + all(0.2402265069f);
    power = power * rest + all(0.6931471806f);
    power = power * rest + all(1.0f);
    return (Vector)((Integers)power + ((Integers)rounded << 23));
}

// The codebook, for logarithms of weights: log2 w_k = t u_k + s v_k + offset_k, up to what all have in common.
struct Points {
    std::vector<float> u, v, offset;

    explicit Points(int levels) : u(levels), v(levels), offset(levels) {}

    void set(const float *codebook, float factor) {
        for (size_t k = 0; k < u.size(); k++) {
            const float a = codebook[2 * k], b = codebook[2 * k + 1];
            u[k] = factor * a;
            v[k] = factor * b;
            offset[k] = -0.5f * factor * (a * a + b * b);
        }
    }
};

inline Vector logarithm(const Points &points, int k, Vector t, Vector s) {
    return points.u[k] * t + (points.v[k] * s + all(points.offset[k]));
}

// old = the mean of `values` under the weights of the fields t and s, extrapolated = mean + momentum (mean - old before).
// LEVELS, where it is not 0, is the number of points: the compiler then unrolls what runs over them.
template <int LEVELS>
void average_of(const Points &points, const float *values, long size, const Vector *t, const Vector *s, float momentum,
                Vector *old, Vector *extrapolated) {
    const int levels = LEVELS ? LEVELS : (int)points.u.size();
    Vector logarithms[LEVELS ? LEVELS : MOST_LEVELS];
    for (long j = 0; j < size; j++) {
        Vector most = all(-3e38f);
        for (int k = 0; k < levels; k++) {
            logarithms[k] = logarithm(points, k, t[j], s[j]);
            most = larger(most, logarithms[k]);
        }
        Vector total{}, sum{};
        for (int k = 0; k < levels; k++) {
            const Vector weight = exp2_of_negative(logarithms[k] - most);
            total += weight;
            sum += weight * values[k];
        }
        const Vector mean = sum / total;
        extrapolated[j] = mean + momentum * (mean - old[j]);
        old[j] = mean;
    }
}

void average(const Points &points, const float *values, long size, const Vector *t, const Vector *s, float momentum,
             Vector *old, Vector *extrapolated) {
    switch (points.u.size()) {
        case 4: return average_of<4>(points, values, size, t, s, momentum, old, extrapolated);
        case 8: return average_of<8>(points, values, size, t, s, momentum, old, extrapolated);
        case 16: return average_of<16>(points, values, size, t, s, momentum, old, extrapolated);
        case 32: return average_of<32>(points, values, size, t, s, momentum, old, extrapolated);
        default: return average_of<0>(points, values, size, t, s, momentum, old, extrapolated);
    }
}

inline Integers nearest(const Points &points, Vector t, Vector s) {
    Vector most = logarithm(points, 0, t, s);
    Integers code{};
    for (size_t k = 1; k < points.u.size(); k++) {
        const Vector value = logarithm(points, k, t, s);
        const auto better = value > most;
        most = better ? value : most;
        code = better ? (int32_t)k - Integers{} : code;
    }
    return code;
}

Vector gather(const float *column, Integers code) {
    Vector values{};
    for (int lane = 0; lane < LANES; lane++) values[lane] = column[2 * code[lane]];
    return values;
}

template <class Entry> struct Aligned {
    explicit Aligned(long count) : data((Entry *)std::aligned_alloc(4 * LANES, count * sizeof(Entry))) {}
    ~Aligned() { std::free(data); }
    Aligned(const Aligned &) = delete;
    Entry *data;
};

}  // namespace

// Anneal `rows` rows x (rows, size) of unit mean square. Returns 0, or 1 when there is no memory.
//
// signs (size): of D2, over sqrt(2^k). beta, momentum (sweeps). moving (hard, size): which positions a hard sweep moves.
// Out: codes (rows, size); trace (rows, sweeps), may be null: |x - u - Q v|^2 in the course of each sweep.
extern "C" int kquant_anneal(const float *x, long rows, long size, long power, const float *dense,
                             const float *transposed, const float *signs, const float *codebook, int levels,
                             const float *beta, const float *momentum, int sweeps, const uint8_t *moving, int hard,
                             uint8_t *codes, float *trace) {
    const Transform transform{power, size / power, dense, transposed};
    Aligned<Vector> memory(6 * size + GROUPS * transform.order);
    Aligned<Integers> indices(2 * size);
    if (!memory.data || !indices.data) return 1;
    Vector *const target = memory.data, *const u = target + size, *const v = u + size;
    Vector *const t = v + size, *const s = t + size, *const next = s + size, *const scratch = next + size;
    Integers *const current = indices.data, *const best = current + size;
    Points points(levels);
    std::vector<float> values(2 * levels);
    for (int k = 0; k < levels; k++) {
        values[k] = codebook[2 * k];
        values[levels + k] = codebook[2 * k + 1];
    }

    for (long first = 0; first < rows; first += LANES) {
        const long lanes = rows - first < LANES ? rows - first : LANES;
        for (long j = 0; j < size; j++) {
            target[j] = Vector{};
            for (long lane = 0; lane < lanes; lane++) target[j][lane] = x[(first + lane) * size + j];
            u[j] = v[j] = Vector{};
            t[j] = target[j];
            s[j] = signs[j] * target[j];
        }
        apply(transform, s, scratch);

        for (int sweep = 0; sweep < sweeps; sweep++) {
            points.set(codebook, beta[sweep] * 2 * 1.4426950408889634f);
            average(points, values.data(), size, t, s, momentum[sweep], u, next);
            Vector residual{};
            for (long j = 0; j < size; j++) {
                residual += (t[j] - next[j]) * (t[j] - next[j]);
                s[j] = signs[j] * (target[j] - next[j]);
            }
            apply(transform, s, scratch);
            average(points, values.data() + levels, size, t, s, momentum[sweep], v, next);
            memcpy(t, next, size * sizeof(Vector));
            adjoint(transform, t, scratch);
            for (long j = 0; j < size; j++) t[j] = target[j] - signs[j] * t[j];
            if (trace)
                for (long lane = 0; lane < lanes; lane++) trace[(first + lane) * sweeps + sweep] = residual[lane];
        }

        points.set(codebook, 1);
        Vector least = all(3e38f);
        for (int round = 0; round <= hard; round++) {
            for (long j = 0; j < size; j++) {
                if (round == 0 || moving[(round - 1) * size + j]) current[j] = nearest(points, t[j], s[j]);
                u[j] = gather(codebook, current[j]);
                t[j] = gather(codebook + 1, current[j]);
            }
            adjoint(transform, t, scratch);
            Vector residual{};
            for (long j = 0; j < size; j++) {
                t[j] = target[j] - signs[j] * t[j];
                residual += (t[j] - u[j]) * (t[j] - u[j]);
                s[j] = signs[j] * (target[j] - u[j]);
            }
            apply(transform, s, scratch);
            const auto better = residual < least;
            least = better ? residual : least;
            for (long j = 0; j < size; j++) best[j] = better ? current[j] : best[j];
        }
        for (long lane = 0; lane < lanes; lane++)
            for (long j = 0; j < size; j++) codes[(first + lane) * size + j] = (uint8_t)best[j][lane];
    }
    return 0;
}
