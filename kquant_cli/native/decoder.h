// One token through decoder layers of Llama's kind: a layer in two calls (runtime/decoder_step.py), between which the
// caller keeps keys and values, or all layers in one (runtime/decoder_stack.py).
//
//     begin:  h = norm(x),  q, k, v = products of h,  q and k normed (Qwen3) and rotated
//     end:    x += o(attention(q, keys, values)),  y = x + down(silu(gate(h)) * up(h)),  h = norm(x)
//
// Everything between the products is float32, whatever the model's dtype.

#pragma once

#include "layer.h"

namespace {

// As runtime/decoder_step.py lays it out; norms are weights (n,), null: none. All in the model's dtype.
struct Decoder {
    const Layer *qkv, *o, *gate_up, *down;
    const void *norm, *norm_after, *norm_q, *norm_k;
    long dtype, heads, kv_heads, head_size;
    float epsilon, epsilon_after, epsilon_heads, scaling;
};

namespace step {

using single::Vector;
using single::LANES;

INLINE Vector vector(const float *p) {
    Vector v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE float total(Vector v) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += v[i];
    return sum;
}

INLINE float dot(const float *a, const float *b, long count) {
    Vector sums = {};
    long i = 0;
    for (; i + LANES <= count; i += LANES) sums += vector(a + i) * vector(b + i);
    float sum = total(sums);
    for (; i < count; i++) sum += a[i] * b[i];
    return sum;
}

// e^x for x from -87 to 88, relative error below 3e-7; outside as at the ends. No branches: loops become vectors.
INLINE float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    const float rounder = 12582912.0f, rounded = x * 1.44269504f + rounder, whole = rounded - rounder;
    const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float power = 1.9875691500e-4f;
    power = power * rest + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1.0f;
    return from_bits(to_bits(power) + (to_bits(rounded) << 23));
}

// out = x / sqrt(mean(x^2) + epsilon) * weight
inline void norm(const float *x, const void *weight, int dtype, float epsilon, long count, float *out) {
    const float factor = 1 / std::sqrt(dot(x, x, count) / count + epsilon);
    read(weight, dtype, count, out);
    for (long i = 0; i < count; i++) out[i] *= x[i] * factor;
}

// The two halves of a head as real and imaginary parts, turned.
inline void rotate(float *head, const float *cosine, const float *sine, long size) {
    const long half = size / 2;
    for (long i = 0; i < half; i++) {
        const float a = head[i], b = head[i + half];
        head[i] = a * cosine[i] - b * sine[i];
        head[i + half] = b * cosine[i + half] + a * sine[i + half];
    }
}

// A head's keys or values: (length, head_size), rows of `stride` numbers.
struct Cache {
    const void *data;
    long head_stride, stride;

    const void *row(long head, long token, int dtype) const {
        return (const char *)data + (head * head_stride + token * stride) * (dtype == FLOAT32 ? 4 : 2);
    }
};

struct Attention {
    const Decoder &decoder;
    const float *q;
    Cache keys, values;
    long length;
    float *out, *scores;  // (heads, head_size), (heads, length)
    Tasks tasks;

    void operator()() {
        tasks.run(decoder.kv_heads, [&](long head) { attend(head); });
    }

    void attend(long kv_head) {
        const long group = decoder.heads / decoder.kv_heads, size = decoder.head_size, first = kv_head * group;
        const int dtype = decoder.dtype;
        alignas(64) float row[1024];
        for (long token = 0; token < length; token++) {
            read(keys.row(kv_head, token, dtype), dtype, size, row);
            for (long h = first; h < first + group; h++)
                scores[h * length + token] = decoder.scaling * dot(q + h * size, row, size);
        }
        for (long h = first; h < first + group; h++) {
            float *const score = scores + h * length, most = *std::max_element(score, score + length);
            for (long token = 0; token < length; token++) score[token] = exponential(score[token] - most);
            float sum = 0;
            for (long token = 0; token < length; token++) sum += score[token];
            for (long token = 0; token < length; token++) score[token] /= sum;
        }
        memset(out + first * size, 0, group * size * sizeof(float));
        for (long token = 0; token < length; token++) {
            read(values.row(kv_head, token, dtype), dtype, size, row);
            for (long h = first; h < first + group; h++) {
                const float weight = scores[h * length + token];
                for (long i = 0; i < size; i++) out[h * size + i] += weight * row[i];
            }
        }
    }
};

constexpr long MOST_HEAD_SIZE = 1024;  // of `row`

inline bool product(const Layer *layer, const float *x, float *out, int dtype, int threads, Parallel *parallel) {
    constexpr long ALONE = 1 << 18;  // as runtime/torch_threads.py
    const int now = layer->rows() * layer->columns > ALONE ? threads : 1;
    return (dtype == FLOAT32 ? run_layer<3> : run_layer<2>)(*layer, x, FLOAT32, nullptr, nullptr, 1, out, FLOAT32, now,
                                                           parallel);
}

// q (heads * head_size) float32, k and v (kv_heads * head_size) in the model's dtype.
inline bool begin(const Decoder &d, const void *x, const void *cosine, const void *sine, float *q, void *k, void *v,
                  int threads, Parallel *parallel) {
    static thread_local Workspace workspace;
    const long columns = d.qkv->columns, size = d.head_size, rows_q = d.heads * size, rows_k = d.kv_heads * size;
    float *const space = (float *)workspace.of((2 * columns + rows_q + 2 * rows_k + 4 * size) * sizeof(float));
    if (!space) return false;
    float *const in = space, *const h = in + columns, *const out = h + columns;
    float *const turn = out + rows_q + 2 * rows_k, *const weight = turn + 2 * size;
    read(x, d.dtype, columns, in);
    norm(in, d.norm, d.dtype, d.epsilon, columns, h);
    if (!product(d.qkv, h, out, d.dtype, threads, parallel)) return false;
    read(cosine, d.dtype, size, turn);
    read(sine, d.dtype, size, turn + size);
    for (long head = 0; head < d.heads + d.kv_heads; head++) {
        float *const at = out + head * size;
        const void *const normed = head < d.heads ? d.norm_q : d.norm_k;
        if (normed) {
            norm(at, normed, d.dtype, d.epsilon_heads, size, weight);
            memcpy(at, weight, size * sizeof(float));
        }
        rotate(at, turn, turn + size, size);
    }
    memcpy(q, out, rows_q * sizeof(float));
    for (long i = 0; i < rows_k; i++) store(k, d.dtype, i, out[rows_q + i]);
    for (long i = 0; i < rows_k; i++) store(v, d.dtype, i, out[rows_q + rows_k + i]);
    return true;
}

inline bool end(const Decoder &d, const void *x, const float *q, const Cache &keys, const Cache &values, long length,
                void *y, int threads, Parallel *parallel) {
    static thread_local Workspace workspace;
    const long columns = d.qkv->columns, inner = d.down->columns, rows_q = d.heads * d.head_size;
    float *const space =
        (float *)workspace.of((3 * columns + rows_q + d.heads * length + 2 * inner) * sizeof(float));
    if (!space) return false;
    float *const in = space, *const h = in + columns, *const out = h + columns, *const attended = out + columns;
    float *const scores = attended + rows_q, *const gate = scores + d.heads * length, *const up = gate + inner;
    Attention attention{d, q, keys, values, length, attended, scores};
    in_parallel(attention, length * rows_q > 1 << 16 ? threads : 1, parallel);
    if (!product(d.o, attended, out, d.dtype, threads, parallel)) return false;
    read(x, d.dtype, columns, in);
    for (long i = 0; i < columns; i++) in[i] += out[i];
    norm(in, d.norm_after, d.dtype, d.epsilon_after, columns, h);
    if (!product(d.gate_up, h, gate, d.dtype, threads, parallel)) return false;
    for (long i = 0; i < inner; i++) gate[i] *= up[i] / (1 + exponential(-gate[i]));
    if (!product(d.down, gate, out, d.dtype, threads, parallel)) return false;
    for (long i = 0; i < columns; i++) store(y, d.dtype, i, in[i] + out[i]);
    return true;
}

// A layer of a stack, and its cache: (kv_heads, tokens, head_size), to which the token's own keys and values are added.
struct Stacked {
    const Decoder *decoder;
    void *keys, *values;
    long key_head, key_token, value_head, value_token;  // strides, in numbers
};

inline void append(void *cache, long head_stride, long stride, long token, const Decoder &d, const char *from) {
    const long bytes = d.dtype == FLOAT32 ? 4 : 2;
    for (long head = 0; head < d.kv_heads; head++)
        memcpy((char *)cache + (head * head_stride + token * stride) * bytes, from + head * d.head_size * bytes,
               d.head_size * bytes);
}

// y = norm(the last layer's output) of the token number length - 1.
inline bool stack(const Stacked *layers, long count, const void *x, const void *cosine, const void *sine, long length,
                  const void *last_norm, float epsilon, void *y, int threads, Parallel *parallel) {
    static thread_local Workspace workspace;
    const Decoder &d = *layers[0].decoder;
    const long columns = d.qkv->columns, bytes = d.dtype == FLOAT32 ? 4 : 2, rows_k = d.kv_heads * d.head_size;
    char *const space = workspace.of(columns * (8 + bytes) + d.heads * d.head_size * 4 + 2 * rows_k * bytes);
    if (!space) return false;
    float *const in = (float *)space, *const out = in + columns, *const q = out + columns;
    char *const now = (char *)(q + d.heads * d.head_size), *const k = now + columns * bytes, *const v = k + rows_k * bytes;
    memcpy(now, x, columns * bytes);
    for (long i = 0; i < count; i++) {
        const Stacked &at = layers[i];
        if (!begin(*at.decoder, now, cosine, sine, q, k, v, threads, parallel)) return false;
        append(at.keys, at.key_head, at.key_token, length - 1, d, k);
        append(at.values, at.value_head, at.value_token, length - 1, d, v);
        const Cache keys{at.keys, at.key_head, at.key_token}, values{at.values, at.value_head, at.value_token};
        if (!end(*at.decoder, now, q, keys, values, length, now, threads, parallel)) return false;
    }
    read(now, d.dtype, columns, in);
    norm(in, last_norm, d.dtype, epsilon, columns, out);
    for (long i = 0; i < columns; i++) store(y, d.dtype, i, out[i]);
    return true;
}

}  // namespace step

}  // namespace
