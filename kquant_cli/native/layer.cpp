// What runtime/layer_loops.py declares: the headers say what is computed, and how.

#include "layer.h"
#include "decoder.h"
#include "dense.h"
#include "head.h"
#include "tokens.h"

extern "C" {

// a and b of x (tokens, columns), float32; transform.h has the arguments.
void kquant_transform_pair(const float *x, long tokens, const Bases *bases, const float *inverse, float *workspace,
                           float *a, float *b) {
    const long size = bases->size();
    for (long token = 0, at = 0; token < tokens; token++, at += size)
        transform_pair(x + at, *bases, inverse, workspace, a + at, b ? b + at : nullptr);
}

long kquant_blocks_size(long rows, long columns, int levels) {
    const Blocks blocks(rows, columns, levels);
    return blocks.count * blocks.bytes;
}

// The blocks, which are zeros, of codes packed as packing.py says: `digits` codes in words of `size` bytes.
int kquant_to_blocks(const uint8_t *packed, long rows, long columns, int levels, int digits, int size, uint8_t *out,
                     int threads, Parallel *parallel) {
    const Blocks blocks(rows, columns, levels);
    const long words = (columns + digits - 1) / digits;
    struct {
        Tasks tasks;
        const Blocks &blocks;
        const uint8_t *packed;
        long words;
        int levels, digits, size;
        uint8_t *out;

        void operator()() {
            tasks.run(blocks.count, [&](long block) {
                const long begin = block * BLOCK_ROWS, end = std::min(blocks.rows, begin + BLOCK_ROWS);
                for (long row = begin; row < end; row++)
                    for (long t = 0; t < words; t++) {
                        uint64_t word = 0;
                        for (int d = 0; d < size; d++) word |= (uint64_t)packed[(row * size + d) * words + t] << 8 * d;
                        for (int digit = 0; digit < digits; digit++) {
                            const long column = digit * words + t;
                            if (column >= blocks.columns) break;
                            const unsigned code = word % levels;
                            word /= levels;
                            put_code(blocks, out + block * blocks.bytes, column / blocks.per, row - begin,
                                     code << blocks.bits * (column % blocks.per));
                        }
                    }
            });
        }
    } job{{}, blocks, packed, words, levels, digits, size, out};
    in_parallel(job, threads, parallel);
    return 0;
}

// The codes (end - begin, columns) of rows begin .. end - 1.
void kquant_from_blocks(const uint8_t *in, long rows, long columns, int levels, long begin, long end, uint8_t *codes) {
    const Blocks blocks(rows, columns, levels);
    const unsigned mask = (1u << blocks.bits) - 1;
    for (long row = begin; row < end; row++)
        for (long j = 0; j < columns; j++)
            *codes++ = code_of(blocks, in + row / BLOCK_ROWS * blocks.bytes, j / blocks.per, row % BLOCK_ROWS) >>
                           blocks.bits * (j % blocks.per) & mask;
}

// y of x (tokens, columns) through all matrices of a layer; out: (tokens, rows) of each, one after the other.
int kquant_layer(const Layer *layer, const void *x, int dtype, long tokens, void *out, int out_dtype, int threads,
                 Parallel *parallel) {
    return !(dtype == FLOAT32 ? run_layer<3> : run_layer<2>)(*layer, x, dtype, nullptr, nullptr, tokens, out, out_dtype, threads, parallel);
}

// The same of a and b (tokens, columns), float32; b may be null. Two terms apart: out (2, tokens, rows).
int kquant_product_of_blocks(const Layer *layer, const float *a, const float *b, long tokens, float *out, int threads,
                             Parallel *parallel) {
    return !run_layer<3>(*layer, nullptr, FLOAT32, a, b, tokens, out, FLOAT32, threads, parallel);
}

// tokens.h: a (tokens, columns) of x (tokens, columns) of any dtype; float32 or bfloat16.
int kquant_transform_first(const Layer *layer, const void *x, int dtype, long tokens, void *a, int a_dtype, int threads,
                           Parallel *parallel) {
    return !transform_first(*layer, x, dtype, tokens, a, a_dtype, threads, parallel);
}

int kquant_transform_last(const Layer *layer, const void *w, int dtype, long tokens, void *y, int y_dtype, int threads,
                          Parallel *parallel) {
    return !transform_last(*layer, w, dtype, tokens, y, y_dtype, threads, parallel);
}

// decoder.h. strides: of a head and of a token, of keys and then of values, in numbers.
int kquant_decoder_begin(const Decoder *decoder, const void *x, const void *cosine, const void *sine, float *q, void *k,
                         void *v, int threads, Parallel *parallel) {
    return !step::begin(*decoder, x, cosine, sine, q, k, v, threads, parallel);
}

int kquant_decoder_end(const Decoder *decoder, const void *x, const float *q, const void *keys, const void *values,
                       const long *strides, long length, void *y, int threads, Parallel *parallel) {
    return !step::end(*decoder, x, q, {keys, strides[0], strides[1]}, {values, strides[2], strides[3]}, length, y, threads,
                      parallel);
}

// The same for `count` layers, and the norm after them; y (columns,).
int kquant_decoder_stack(const step::Stacked *layers, long count, const void *x, const void *cosine, const void *sine,
                         long length, const void *last_norm, float epsilon, void *y, int threads, Parallel *parallel) {
    return !step::stack(layers, count, x, cosine, sine, length, last_norm, epsilon, y, threads, parallel);
}

// head.h: y (rows,) of x (columns,), all of one dtype.
int kquant_head(const void *weight, const void *bias, int dtype, long rows, long columns, const void *x, void *y,
                int threads, Parallel *parallel) {
    return !head(weight, bias, dtype, rows, columns, x, y, threads, parallel);
}

// The same of codes; y (tokens, rows) of x (tokens, columns), both of one dtype.
int kquant_bytes(const ByteMatrix *matrix, const void *x, int dtype, long tokens, void *y, int threads,
                 Parallel *parallel) {
    return !bytes(*matrix, x, dtype, tokens, y, threads, parallel);
}

// Rows of codes as bfloat16 (count, columns).
int kquant_byte_rows(const ByteMatrix *matrix, long first, long count, uint16_t *out, int threads, Parallel *parallel) {
    ByteRows job{*matrix, first, count, out};
    in_parallel(job, threads, parallel);
    return 0;
}

// dense.h: rows of blocks first .. first + count - 1 of the first matrix, as rows (64 count, columns).
int kquant_dense_rows(const Layer *layer, long first, long count, void *u, float *v, int dtype, int threads,
                      Parallel *parallel) {
    RowsOfWeight job{*layer, layer->matrices[0], first, count, u, v, dtype};
    in_parallel(job, threads, parallel);
    return job.failed;
}

// Its columns of panels first .. first + count - 1, as (columns, rows).
int kquant_dense_columns(const Layer *layer, long first, long count, void *out, int dtype, int threads, Parallel *parallel) {
    ColumnsOfWeight job{*layer, layer->matrices[0], first, count, out, dtype};
    in_parallel(job, threads, parallel);
    return job.failed;
}

}
