// Work of several threads, which are torch's (runtime/torch_threads.py), and memory that stays with the thread that asks.

#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <sched.h>

namespace {

typedef void Parallel(void (*function)(void *), void *data, unsigned threads, unsigned flags);

// Calls work() in so many threads; with one, or without `parallel`, in this one.
template <class Work> void in_parallel(Work &work, int threads, Parallel *parallel) {
    const auto call = [](void *data) { (*(Work *)data)(); };
    if (threads > 1 && parallel)
        parallel(call, &work, threads, 0);
    else
        call(&work);
}

// Tasks 0 .. count - 1, each done by whoever comes first: fewer threads than were asked for do all of them.
struct Tasks {
    std::atomic<long> next{0}, done{0};

    template <class Work> void run(long count, Work work) {
        for (long task; (task = next.fetch_add(1)) < count;) {
            work(task);
            done.fetch_add(1, std::memory_order_release);
        }
    }

    void wait(long count) const {  // until the others have done theirs
        for (long turns = 0; done.load(std::memory_order_acquire) < count; turns++)
            if (turns > 2000) sched_yield();
    }
};

struct Workspace {  // only grows; aligned to 64 bytes
    char *data = nullptr;
    size_t size = 0;

    char *of(size_t bytes) {  // null where there is no memory
        if (bytes > size) {
            std::free(data);
            size = (bytes + 4095) / 4096 * 4096;
            data = (char *)std::aligned_alloc(64, size);
            if (!data) size = 0;
        }
        return data;
    }

    ~Workspace() { std::free(data); }
};

}  // namespace
