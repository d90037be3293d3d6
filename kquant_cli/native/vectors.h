// Vectors of floats as wide as the processor has them: GCC keeps wider ones in memory.

#pragma once

#include <cstdint>

namespace {

namespace single {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

}  // namespace single

}  // namespace
