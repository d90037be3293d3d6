// What comes before and after a product with dense weights (dense.h), for many tokens: A^T of the input, A of the output.

#pragma once

#include "layer.h"

namespace {

template <class Work> struct EachToken {
    long tokens, floats;
    Work work;
    Tasks tasks;
    std::atomic<bool> failed{false};

    void operator()() {
        static thread_local Workspace workspace;
        float *const space = (float *)workspace.of(floats * sizeof(float));
        if (space)
            tasks.run(tokens, [&](long token) { work(token, space); });
        else
            failed = true;
    }
};

// work(token, so many floats for itself) for every token. false: there is no memory.
template <class Work> bool each_token(long tokens, long floats, int threads, Parallel *parallel, Work work) {
    EachToken<Work> job{tokens, floats, work};
    in_parallel(job, threads, parallel);
    return !job.failed;
}

// a (tokens, columns) of x (tokens, columns).
inline bool transform_first(const Layer &layer, const void *x, int dtype, long tokens, void *a, int a_dtype, int threads,
                            Parallel *parallel) {
    const long size = layer.columns;
    return each_token(tokens, 4 * size, threads, parallel, [&](long token, float *space) {
        float *const to = space + 2 * size, *const from = space + 3 * size;
        read((const char *)x + token * size * bytes_of(dtype), dtype, size, from);
        transform_pair(from, layer.input, layer.inverse, space, to, nullptr);
        write(to, a_dtype, size, (char *)a + token * size * bytes_of(a_dtype));
    });
}

// y (tokens, rows) of what the columns of the first matrix made (tokens, rows), scale of rows and bias included.
inline bool transform_last(const Layer &layer, const void *w, int dtype, long tokens, void *y, int y_dtype, int threads,
                           Parallel *parallel) {
    const Matrix &matrix = layer.matrices[0];
    const long size = matrix.rows;
    return each_token(tokens, 3 * size, threads, parallel, [&](long token, float *space) {
        float *const now = space + 2 * size;
        read((const char *)w + token * size * bytes_of(dtype), dtype, size, now);
        transform_back(now, nullptr, matrix.output, space);
        put_output(matrix, now, space, (char *)y + token * size * bytes_of(y_dtype), y_dtype);
    });
}

}  // namespace
