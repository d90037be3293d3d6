// All kernels for the emulator; compiled with the folder of the CUDA sources on the path.
#define EMULATED
#include "emulator.h"
#include "activations.cu"
#include "product.cu"

template <int KIND, int T>
void emulated_product(const unsigned char* codes, const u32* table, const uint4* act, const float* tok, const void* scale, int scale_dtype,
                      int scale_step, const void* bias, int bias_dtype, u16* y, int y_dtype, int rows, int words, int parts, int tokens, float step) {
  product<KIND, T>(codes, table, act, tok, scale, scale_dtype, scale_step, bias, bias_dtype, y, y_dtype, rows, words, parts, tokens, step);
}
#define ADD(KIND, T) static bool added_##KIND##_##T = emulator::add<emulated_product<KIND, T>>("product KIND=" #KIND " TOKENS=" #T, 1);
#define ADD_ALL(KIND) ADD(KIND, 1) ADD(KIND, 2) ADD(KIND, 4) ADD(KIND, 8)
ADD_ALL(0)
ADD_ALL(1)
ADD_ALL(2)
ADD_ALL(3)
// By tables, of 1 to 8 bits.
ADD_ALL(17)
ADD_ALL(18)
ADD_ALL(19)
ADD_ALL(20)
ADD_ALL(21)
ADD_ALL(22)
ADD_ALL(23)
ADD_ALL(24)
static bool added = emulator::add<kquant_activations>("activations", 8);
