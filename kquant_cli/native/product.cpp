// The product of packed rows with activations on a CPU (runtime/products/native.py; packing.py has the layout of a row).
//
//     first[m][i] = sum_j Cu[code_ij] a[m][j] + Cv[code_ij] b[m][j]
//
// LANES words are loaded at a time; digit i of all of them is one vector of indices, the codebook stands in registers
// and is looked up by permutations, and the lanes meet LANES neighbouring activations. ROWS rows go together, so that
// activations are loaded once for all of them. The activations are first brought into the order in which they are
// met, with zeros where words or digits go beyond the last column: what lies behind a row may be read, not counted.
//
// Vectors are those of GCC and Clang; permutations and wide products are AVX-512's or AVX2's where there are such.

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define WIDE 2  // AVX-512
constexpr int LANES = 16;
#elif defined(__AVX2__) && defined(__FMA__)
#define WIDE 1  // AVX2
constexpr int LANES = 8;
#else
#define WIDE 0
constexpr int LANES = 8;
#endif
#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

constexpr int ROWS = 4, MOST_SIZE = 7, MOST_TOKENS = 4;
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef uint32_t Index __attribute__((vector_size(4 * LANES)));
typedef uint64_t Half __attribute__((vector_size(4 * LANES)));  // half as many lanes
typedef double HalfReal __attribute__((vector_size(4 * LANES)));
typedef int64_t HalfTruth __attribute__((vector_size(4 * LANES)));

INLINE Index bytes(const uint8_t *p) {
#if WIDE == 2  // GCC takes the conversion of vectors apart, byte by byte
    return (Index)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
#elif WIDE == 1
    return (Index)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    Index index;
    for (int lane = 0; lane < LANES; lane++) index[lane] = p[lane];
    return index;
#endif
}

INLINE Vector load(const float *p) {
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE float sum(Vector v) {
#if WIDE == 2
    return _mm512_reduce_add_ps((__m512)v);
#else
    for (int half = LANES / 2; half; half /= 2)  // in pairs: a chain of sums would wait for each
        for (int lane = 0; lane < half; lane++) v[lane] += v[lane + half];
    return v[0];
#endif
}

// The codebook, of at most ENTRIES levels: `look` up indices in a column, or in `both`. Only an index's low bits count.
// Few levels stand in registers; many are gathered from the cache, u and v at once.
template <int ENTRIES> struct Book {
    static constexpr int KEPT = ENTRIES < 2 * LANES ? 2 * LANES : ENTRIES;
    static constexpr bool PAIRS = WIDE == 2 ? ENTRIES > 64 : WIDE == 1 && ENTRIES > 16;
    alignas(64) float columns[2][KEPT];
    alignas(64) float pairs[PAIRS ? 2 * KEPT : 1];

    Book(const float *codebook, int levels, int count) {
        for (int k = 0; k < KEPT; k++)  // again and again: where the levels are a power of two, higher bits do not count
            for (int c = 0; c < count; c++) {
                columns[c][k] = codebook[(k % levels) * count + c];
                if (PAIRS) pairs[2 * k + c] = columns[c][k];
            }
    }

    INLINE void both(Index index, Vector &u, Vector &v) const {
#if WIDE == 2
        if constexpr (PAIRS) {
            const __m512i i = _mm512_and_si512((__m512i)index, _mm512_set1_epi32(ENTRIES - 1));
            const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            const __m512 first = (__m512)_mm512_i32gather_pd(_mm512_castsi512_si256(i), pairs, 8);
            const __m512 last = (__m512)_mm512_i32gather_pd(_mm512_extracti64x4_epi64(i, 1), pairs, 8);
            u = (Vector)_mm512_permutex2var_ps(first, even, last);
            v = (Vector)_mm512_permutex2var_ps(first, _mm512_or_si512(even, _mm512_set1_epi32(1)), last);
            return;
        }
#elif WIDE == 1
        if constexpr (PAIRS) {
            const __m256i i = _mm256_and_si256((__m256i)index, _mm256_set1_epi32(ENTRIES - 1));
            const __m256 first = (__m256)_mm256_i32gather_pd((const double *)pairs, _mm256_castsi256_si128(i), 8);
            const __m256 last = (__m256)_mm256_i32gather_pd((const double *)pairs, _mm256_extracti128_si256(i, 1), 8);
            u = (Vector)_mm256_permute4x64_pd((__m256d)_mm256_shuffle_ps(first, last, 0x88), 0xD8);
            v = (Vector)_mm256_permute4x64_pd((__m256d)_mm256_shuffle_ps(first, last, 0xDD), 0xD8);
            return;
        }
#endif
        u = look(index, 0);
        v = look(index, 1);
    }

    INLINE Vector look(Index index, int column) const {
        const float *entries = columns[column];
#if WIDE == 2
        const __m512i i = (__m512i)index;
        const __m512 *t = (const __m512 *)entries;
        if constexpr (ENTRIES <= 16) return (Vector)_mm512_permutexvar_ps(i, t[0]);
        if constexpr (ENTRIES == 32) return (Vector)_mm512_permutex2var_ps(t[0], i, t[1]);
        if constexpr (ENTRIES == 64)
            return (Vector)_mm512_mask_blend_ps(_mm512_test_epi32_mask(i, _mm512_set1_epi32(32)),
                                                _mm512_permutex2var_ps(t[0], i, t[1]),
                                                _mm512_permutex2var_ps(t[2], i, t[3]));
        return (Vector)_mm512_i32gather_ps(_mm512_and_si512(i, _mm512_set1_epi32(ENTRIES - 1)), entries, 4);
#elif WIDE == 1
        const __m256i i = (__m256i)index;
        const __m256 *t = (const __m256 *)entries;
        if constexpr (ENTRIES <= 8) return (Vector)_mm256_permutevar8x32_ps(t[0], i);
        if constexpr (ENTRIES == 16)
            return (Vector)_mm256_blendv_ps(_mm256_permutevar8x32_ps(t[0], i), _mm256_permutevar8x32_ps(t[1], i),
                                            (__m256)_mm256_slli_epi32(i, 28));
        return (Vector)_mm256_i32gather_ps(entries, _mm256_and_si256(i, _mm256_set1_epi32(ENTRIES - 1)), 4);
#else
        Vector v;
        for (int lane = 0; lane < LANES; lane++) v[lane] = entries[index[lane] & (ENTRIES - 1)];
        return v;
#endif
    }
};

// What all of a product's threads read.
struct Job {
    const uint8_t *codes, *end;
    long rows, columns, words;
    int levels, digits, size;
    const float *codebook, *activations;  // activations: as `arrange` leaves them
    long arranged;  // where those for the second column begin, where the columns are not multiplied together
    int book_columns;
    long tokens;
    float *first, *second;
    const float *scales;  // (rows, groups), only where rows are decoded
    long group, groups, stride;
    std::atomic<long> next;
    long step;
};

// Levels 2^BITS, and all levels above 128 (BITS = 8): digits are fields of bits.
template <int BITS> struct Fields {
    static constexpr int SIZE = BITS == 3 || BITS == 6 ? 3 : BITS == 5 ? 5 : BITS == 7 ? 7 : 1;
    static constexpr int DIGITS = 8 * SIZE / BITS, ENTRIES = 1 << BITS, ABOVE = SIZE > 4 ? SIZE - 4 : 0;
    struct State {
        Index low, high;  // bytes 0 .. 3 and the last four
    };

    explicit Fields(const Job &) {}

    INLINE static Index window(const uint8_t *p, long stride, int begin) {
        Index word = bytes(p + begin * stride);
        UNROLL for (int d = 1; d < (SIZE < 4 ? SIZE : 4); d++) word |= bytes(p + (begin + d) * stride) << 8 * d;
        return word;
    }

    INLINE State state(const uint8_t *p, long stride) const {
        const Index low = window(p, stride, 0);
        return {low, ABOVE ? window(p, stride, ABOVE) : low};
    }

    // Calls take(digit, indices) for each digit.
    template <class Take> INLINE void each(const State (&states)[ROWS], Take take) const {
        UNROLL for (int digit = 0; digit < DIGITS; digit++) {
            const int begin = BITS * digit;
            Index index[ROWS];
            UNROLL for (int r = 0; r < ROWS; r++)
                index[r] = begin + BITS <= 32 ? states[r].low >> begin : states[r].high >> (begin - 8 * ABOVE);
            take(digit, index);
        }
    }

    static int digit_met(const Job &, int k) { return k; }
};

// Any other number of levels d: the number N of D digits is turned into the fraction F = N 2^32 / d^D, rounded up. Then
// F d has the highest digit in its upper 32 bits, and the fraction for the next in its lower 32. Rounding up by e <= 1
// grows to e d^D, which must stay below 2^32; larger numbers are divided into two first.
template <int MOST> struct Fractions {
    static constexpr int ENTRIES = MOST;
    struct State {
        Half parts[2][2];  // low and high digits; each for the first and the last lanes
    };
    int levels, size, low_digits, high_digits;
    double power, inverse, low_factor, high_factor;

    explicit Fractions(const Job &job) : levels(job.levels), size(job.size), low_digits(job.digits), high_digits(0) {
        if (power_of(levels, job.digits) > 4294000000.0) {
            high_digits = job.digits / 2;
            low_digits = job.digits - high_digits;
        }
        power = power_of(levels, low_digits);
        inverse = 1 / power;
        low_factor = 4294967296.0 / power;
        high_factor = 4294967296.0 / power_of(levels, high_digits);
    }

    static double power_of(double base, int exponent) {  // exact where it must be
        double product = 1;
        for (; exponent; exponent--) product *= base;
        return product;
    }

#if WIDE
    // 24 bits from bytes begin .. begin + 2, as real numbers.
    INLINE void third(const uint8_t *p, long stride, int begin, HalfReal (&out)[2]) const {
        Index word = bytes(p + begin * stride);
        if (begin + 1 < size) word |= bytes(p + (begin + 1) * stride) << 8;
        if (begin + 2 < size) word |= bytes(p + (begin + 2) * stride) << 16;
#if WIDE == 2
        out[0] = (HalfReal)_mm512_cvtepi32_pd(_mm512_castsi512_si256((__m512i)word));
        out[1] = (HalfReal)_mm512_cvtepi32_pd(_mm512_extracti64x4_epi64((__m512i)word, 1));
#else
        out[0] = (HalfReal)_mm256_cvtepi32_pd(_mm256_castsi256_si128((__m256i)word));
        out[1] = (HalfReal)_mm256_cvtepi32_pd(_mm256_extracti128_si256((__m256i)word, 1));
#endif
    }

    INLINE static HalfReal all(double value) { return value - HalfReal{}; }

    INLINE static HalfReal fma(HalfReal a, HalfReal b, HalfReal c) {
#if WIDE == 2
        return (HalfReal)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#else
        return (HalfReal)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#endif
    }

    // The fraction in the low 32 bits: + 2^52 leaves the nearest whole number there. 2^-18 is above all that is lost
    // in rounding, so that the fraction is never too small.
    INLINE static Half fraction(HalfReal number, double factor) {
        return (Half)(fma(number, all(factor), all(0.5 + 0x1p-18)) + all(0x1p52));
    }

    INLINE State state(const uint8_t *p, long stride) const {
        HalfReal low[2], middle[2] = {}, top[2] = {};
        State s;
        third(p, stride, 0, low);
        if (size <= 3) {
            for (int half = 0; half < 2; half++) s.parts[0][half] = fraction(low[half], low_factor);
            return s;
        }
        third(p, stride, 3, middle);
        if (size > 6) third(p, stride, 6, top);
        for (int half = 0; half < 2; half++) {
            const HalfReal above = fma(top[half], all(0x1p48), middle[half] * all(0x1p24));  // exact
            if (!high_digits) {
                s.parts[0][half] = fraction(above + low[half], low_factor);
                continue;
            }
            const HalfReal nearest = fma(above + low[half], all(inverse), all(0x1p52)) - all(0x1p52);
            const HalfReal rest = fma(nearest, all(-power), above) + low[half];  // exact, from -power/2 to power/2
            const HalfTruth under = rest < all(0);
            const HalfReal quotient = under ? nearest - all(1) : nearest;
            s.parts[0][half] = fraction(under ? rest + all(power) : rest, low_factor);
            s.parts[1][half] = fraction(quotient, high_factor);
        }
        return s;
    }
#else
    INLINE State state(const uint8_t *p, long stride) const {
        State s;
        for (int lane = 0; lane < LANES; lane++) {
            uint64_t number = 0;
            for (int d = 0; d < size; d++) number |= (uint64_t)p[d * stride + lane] << 8 * d;
            const uint64_t whole = (uint64_t)power, high = high_digits ? number / whole : 0;
            s.parts[0][2 * lane / LANES][lane % (LANES / 2)] = (uint64_t)((number - high * whole) * low_factor) + 1;
            s.parts[1][2 * lane / LANES][lane % (LANES / 2)] = (uint64_t)(high * high_factor) + 1;
        }
        return s;
    }
#endif

    INLINE static Half multiply(Half fraction, uint32_t factor) {  // of the low 32 bits
#if WIDE == 2
        return (Half)_mm512_mul_epu32((__m512i)fraction, _mm512_set1_epi32(factor));
#elif WIDE == 1
        return (Half)_mm256_mul_epu32((__m256i)fraction, _mm256_set1_epi32(factor));
#else
        return (fraction & 0xffffffff) * factor;
#endif
    }

    INLINE static Index upper(Half first, Half last) {  // 32 bits of each
#if WIDE == 2
        const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
        return (Index)_mm512_permutex2var_epi32((__m512i)first, odd, (__m512i)last);
#elif WIDE == 1
        const __m256i mixed = (__m256i)_mm256_shuffle_ps((__m256)first, (__m256)last, 0xDD);
        return (Index)_mm256_permute4x64_epi64(mixed, 0xD8);
#else
        Index index;
        for (int lane = 0; lane < LANES / 2; lane++) {
            index[lane] = first[lane] >> 32;
            index[lane + LANES / 2] = last[lane] >> 32;
        }
        return index;
#endif
    }

    template <class Take> INLINE void each(const State (&states)[ROWS], Take take) const {
        for (int part = high_digits > 0; part >= 0; part--) {
            Half fractions[ROWS][2];
            UNROLL for (int r = 0; r < ROWS; r++) {
                fractions[r][0] = states[r].parts[part][0];
                fractions[r][1] = states[r].parts[part][1];
            }
            const int base = part ? low_digits : 0;
            for (int digit = (part ? high_digits : low_digits) - 1; digit >= 0; digit--) {
                Index index[ROWS];
                UNROLL for (int r = 0; r < ROWS; r++) {
                    fractions[r][0] = multiply(fractions[r][0], levels);
                    fractions[r][1] = multiply(fractions[r][1], levels);
                    index[r] = upper(fractions[r][0], fractions[r][1]);
                }
                take(base + digit, index);
            }
        }
    }

    static int digit_met(const Job &job, int k) { return job.digits - 1 - k; }  // the highest first
};

// Where the words of ROWS rows are. Reading LANES bytes at a time goes beyond a row's end, which is harmless but
// at the end of all: there the last words are copied.
struct Rows {
    const uint8_t *at[ROWS];
    long stride, whole;
    uint8_t copy[ROWS][MOST_SIZE * LANES];

    INLINE Rows(const Job &job, long first) : stride(job.words) {
        const long width = job.words * job.size;
        for (int r = 0; r < ROWS; r++) {
            const long row = first + r < job.rows ? first + r : job.rows - 1;  // a result that nobody keeps
            at[r] = job.codes + row * width;
        }
        const long blocks = (job.words + LANES - 1) / LANES;
        whole = blocks;
        if (blocks * LANES == job.words || at[ROWS - 1] + width - job.words + blocks * LANES <= job.end) return;
        whole = blocks - 1;
        memset(copy, 0, sizeof copy);
        for (int r = 0; r < ROWS; r++)
            for (int d = 0; d < job.size; d++)
                memcpy(copy[r] + d * LANES, at[r] + d * job.words + whole * LANES, job.words - whole * LANES);
    }

    INLINE void begin(long block) {
        if (block != whole) return;
        for (int r = 0; r < ROWS; r++) at[r] = copy[r];
        stride = LANES;
    }
};

// One row of sums a token for ROWS rows from `first`: both columns of the codebook, or one of them.
template <class Code, int TOKENS, int COLUMNS>
__attribute__((noinline)) void multiply(const Job &job, const Code &code, const Book<Code::ENTRIES> &book, int column,
                                        const float *x, long first, float *out, long kept) {
    Rows rows(job, first);
    Vector sums[ROWS][TOKENS] = {};
    for (long block = 0; block * LANES < job.words; block++) {
        rows.begin(block);
        typename Code::State states[ROWS];
        UNROLL for (int r = 0; r < ROWS; r++) {
            states[r] = code.state(rows.at[r], rows.stride);
            rows.at[r] += LANES;
        }
        code.each(states, [&](int, const Index(&index)[ROWS]) __attribute__((always_inline)) {
            UNROLL for (int r = 0; r < ROWS; r++) {
                Vector u, v;
                if constexpr (COLUMNS == 2)
                    book.both(index[r], u, v);
                else
                    u = book.look(index[r], column);
                UNROLL for (int m = 0; m < TOKENS; m++) {
                    sums[r][m] += u * load(x + m * LANES);
                    if constexpr (COLUMNS == 2) sums[r][m] += v * load(x + (TOKENS + m) * LANES);
                }
            }
            x += COLUMNS * TOKENS * LANES;
        });
    }
    for (int r = 0; r < ROWS && first + r < job.rows; r++)
        for (int m = 0; m < TOKENS && m < kept; m++) out[m * job.rows + first + r] = sum(sums[r][m]);
}

// Tokens go in fours, the last ones alone unless they are three.
int together(long left) { return left >= 3 ? MOST_TOKENS : 1; }

// Activations in the order in which a product meets them: [tokens together][block][digit][column][token][lane].
template <class Code> long arrange(const Job &job, const float *const *inputs, int columns, float *x) {
    const long blocks = (job.words + LANES - 1) / LANES;
    float *const begin = x;
    for (long token = 0, group; token < job.tokens; token += group) {
        group = together(job.tokens - token);
        for (long block = 0; block < blocks; block++)
            for (int k = 0; k < job.digits; k++) {
                const long t = block * LANES, from = Code::digit_met(job, k) * job.words + t;
                long count = job.words - t < job.columns - from ? job.words - t : job.columns - from;
                count = count < 0 ? 0 : count < LANES ? count : LANES;
                for (int c = 0; c < columns; c++)
                    for (long m = token; m < token + group; m++, x += LANES) {
                        if (m >= job.tokens || count < LANES) memset(x, 0, LANES * sizeof(float));
                        if (m < job.tokens) memcpy(x, inputs[c] + m * job.columns + from, count * sizeof(float));
                    }
            }
    }
    return x - begin;
}

template <class Code, int COLUMNS>
void multiply_rows(const Job &job, const Code &code, const Book<Code::ENTRIES> &book, int column, const float *x,
                   float *out, long begin, long end) {
    const long width = (job.words + LANES - 1) / LANES * job.digits * COLUMNS * LANES;
    for (long token = 0, group; token < job.tokens; token += group) {
        group = together(job.tokens - token);
        for (long row = begin; row < end; row += ROWS) {
            float *const to = out + token * job.rows;
            if (group == 1)
                multiply<Code, 1, COLUMNS>(job, code, book, column, x, row, to, 1);
            else
                multiply<Code, MOST_TOKENS, COLUMNS>(job, code, book, column, x, row, to, job.tokens - token);
        }
        x += group * width;
    }
}

// Rows to float32: u, and v `columns` behind it, `stride` floats a row.
template <class Code>
void decode_rows(const Job &job, const Code &code, const Book<Code::ENTRIES> &book, long begin, long end) {
    for (long first = begin; first < end; first += ROWS) {
        Rows rows(job, first);
        const long kept = end - first < ROWS ? end - first : ROWS;
        for (long block = 0; block * LANES < job.words; block++) {
            rows.begin(block);
            typename Code::State states[ROWS];
            for (int r = 0; r < ROWS; r++) {
                states[r] = code.state(rows.at[r], rows.stride);
                rows.at[r] += LANES;
            }
            code.each(states, [&](int digit, const Index(&index)[ROWS]) {
                const long t = block * LANES, to = digit * job.words + t;
                long count = job.words - t < job.columns - to ? job.words - t : job.columns - to;
                if (count <= 0) return;
                count = count < LANES ? count : LANES;
                for (long r = 0; r < kept; r++)
                    for (long c = 0; c < job.book_columns; c++) {
                        const Vector value = book.look(index[r], c);
                        float *const out = job.first + (first + r) * job.stride + c * job.columns + to;
                        if (count == LANES)
                            memcpy(out, &value, sizeof value);
                        else
                            memcpy(out, &value, count * sizeof(float));
                    }
            });
        }
        for (long r = first; job.scales && r < first + kept; r++)
            for (long c = 0; c < job.book_columns; c++)
                for (long g = 0; g < job.groups; g++) {
                    float *const out = job.first + r * job.stride + c * job.columns;
                    const long stop = (g + 1) * job.group < job.columns ? (g + 1) * job.group : job.columns;
                    for (long j = g * job.group; j < stop; j++) out[j] *= job.scales[r * job.groups + g];
                }
    }
}

// Rows are dealt out in steps to whoever is free: a core that another process holds does not hold up the rest.
template <class Code> void work(void *data) {
    Job &job = *(Job *)data;
    const Code code(job);
    const Book<Code::ENTRIES> book(job.codebook, job.levels, job.book_columns);
    const float *const x = job.activations, *const y = x + job.arranged;
    for (long begin; (begin = job.next.fetch_add(job.step)) < job.rows;) {
        const long end = begin + job.step < job.rows ? begin + job.step : job.rows;
        if (!x) {
            decode_rows(job, code, book, begin, end);
        } else if (job.book_columns == 2 && !job.second) {
            multiply_rows<Code, 2>(job, code, book, 0, x, job.first, begin, end);
        } else {
            multiply_rows<Code, 1>(job, code, book, 0, x, job.first, begin, end);
            if (job.second) multiply_rows<Code, 1>(job, code, book, 1, y, job.second, begin, end);
        }
    }
}

// A workspace that stays with its thread, and only grows.
struct Workspace {
    float *data = nullptr;
    size_t size = 0;

    float *of(size_t floats) {
        if (floats > size) {
            std::free(data);
            size = (floats + 1023) / 1024 * 1024;
            data = (float *)std::aligned_alloc(64, size * sizeof(float));
            if (!data) size = 0;
        }
        return data;
    }
    ~Workspace() { std::free(data); }
};
thread_local Workspace workspace;

typedef void Parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);  // GOMP_parallel

template <class Code>
int run(Job &job, const float *a, const float *b, int threads, Parallel *parallel) {
    if (a) {
        const long blocks = (job.words + LANES - 1) / LANES;
        float *x = workspace.of((job.tokens + 1) * 2 * blocks * job.digits * LANES);
        if (!x) return 1;
        job.activations = x;
        const float *const inputs[] = {a, b}, *const second[] = {b};
        if (!b || job.second) {
            job.arranged = arrange<Code>(job, inputs, 1, x);
            if (b) arrange<Code>(job, second, 1, x + job.arranged);
        } else {
            arrange<Code>(job, inputs, 2, x);
        }
    }
    const long steps = 8L * threads;
    job.step = (job.rows / steps + ROWS - 1) / ROWS * ROWS;
    job.step = job.step < ROWS ? ROWS : job.step > 64 ? 64 : job.step;
    if (threads > 1 && parallel)
        parallel(work<Code>, &job, threads, 0);
    else
        work<Code>(&job);
    return 0;
}

int dispatch(Job &job, const float *a, const float *b, int threads, Parallel *parallel) {
    if (job.levels > 128) return run<Fields<8>>(job, a, b, threads, parallel);
    switch (job.levels) {
        case 2: return run<Fields<1>>(job, a, b, threads, parallel);
        case 4: return run<Fields<2>>(job, a, b, threads, parallel);
        case 8: return run<Fields<3>>(job, a, b, threads, parallel);
        case 16: return run<Fields<4>>(job, a, b, threads, parallel);
        case 32: return run<Fields<5>>(job, a, b, threads, parallel);
        case 64: return run<Fields<6>>(job, a, b, threads, parallel);
        case 128: return run<Fields<7>>(job, a, b, threads, parallel);
    }
    if (job.levels < 8 && WIDE < 2) return run<Fractions<8>>(job, a, b, threads, parallel);
    if (job.levels < 16) return run<Fractions<16>>(job, a, b, threads, parallel);
    if (job.levels < 32) return run<Fractions<32>>(job, a, b, threads, parallel);
    if (job.levels < 64) return run<Fractions<64>>(job, a, b, threads, parallel);
    return run<Fractions<128>>(job, a, b, threads, parallel);
}

}  // namespace

// What both functions read: codes (rows, words * size) of `digits` codes a word; codebook (levels, book_columns).
// parallel is GOMP_parallel or null. Both return 0, or 1 when there is no memory.

// a, b (tokens, columns) to first (tokens, rows), and second (tokens, rows) where it is not null. b is null where the
// codebook has one column.
extern "C" int kquant_product(const uint8_t *codes, long rows, long columns, int levels, int digits, int size,
                              const float *codebook, int book_columns, const float *a, const float *b, long tokens,
                              float *first, float *second, int threads, Parallel *parallel) {
    if (!tokens) return 0;
    const long words = (columns + digits - 1) / digits;
    Job job{codes, codes + rows * words * size, rows, columns, words, levels, digits, size, codebook, nullptr, 0,
            book_columns, tokens, first, second, nullptr, 0, 0, 0, {0}, 0};
    return dispatch(job, a, b, threads, parallel);
}

// out (rows, book_columns * columns): u and then v of each row, times scales (rows, groups) where there are such.
extern "C" int kquant_decode(const uint8_t *codes, long rows, long columns, int levels, int digits, int size,
                             const float *codebook, int book_columns, const float *scales, long group, long groups,
                             float *out, int threads, Parallel *parallel) {
    const long words = (columns + digits - 1) / digits;
    Job job{codes, codes + rows * words * size, rows, columns, words, levels, digits, size, codebook, nullptr, 0,
            book_columns, 0, out, nullptr, scales, group, groups, book_columns * columns, {0}, 0};
    return dispatch(job, nullptr, nullptr, threads, parallel);
}
