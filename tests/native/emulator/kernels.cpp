// All kernels for the emulator; compiled with the folder of the CUDA sources on the path.
#define EMULATED
#include "emulator.h"
#include "activations.cu"
#include "outputs.cu"
#include "product.cu"

template <int KIND, int T, bool SPLIT>
void emulated_product(const unsigned char* codes, const u32* table, const unsigned char* act, const float* tok, const void* scale, int scale_dtype,
                      int scale_step, const void* bias, int bias_dtype, void* y, int y_dtype, int rows, int words, int parts, int tokens, float step) {
  product<KIND, T, SPLIT>(codes, table, act, tok, scale, scale_dtype, scale_step, bias, bias_dtype, y, y_dtype, rows, words, parts, tokens, step);
}
template <bool SPLIT>
void emulated_activations(const void* x, int dtype, const void* channel_scale, int channel_dtype, const float* first, const float* second,
                          const float* dct, const float* dct_transposed, const void* column_scale, int column_dtype, int digits, u16* a, u16* b,
                          u32* act, float* tok, int n, int bits, int m, int T) {
  activations<SPLIT>(x, dtype, channel_scale, channel_dtype, first, second, dct, dct_transposed, column_scale, column_dtype, digits, a, b, act, tok, n, bits, m, T);
}
#define ADD(KIND, T, SPLIT) \
  static bool added_##KIND##_##T##_##SPLIT = emulator::add<emulated_product<KIND, T, SPLIT>>("product KIND=" #KIND " TOKENS=" #T " SPLIT=" #SPLIT, 1);
#define ADD_BOTH(KIND, T) ADD(KIND, T, 0) ADD(KIND, T, 1)
#define ADD_ALL(KIND) ADD_BOTH(KIND, 1) ADD_BOTH(KIND, 2) ADD_BOTH(KIND, 4) ADD_BOTH(KIND, 8)
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
static bool added[] = {
    emulator::add<emulated_activations<0>>("activations SPLIT=0", 8),
    emulator::add<emulated_activations<1>>("activations SPLIT=1", 8),
    emulator::add<kquant_outputs>("outputs", 8),
};
