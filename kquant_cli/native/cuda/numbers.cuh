// Numbers of a dtype that is known when a kernel runs.
#pragma once
enum { NONE, FLOAT32, FLOAT16, BFLOAT16 };

DEVICE float number(const void* p, int dtype, long long i) {
  if (dtype == FLOAT32) return ((const float*)p)[i];
  const u16 h = ((const u16*)p)[i];
  return dtype == FLOAT16 ? half_to_float(h) : bfloat_to_float(h);
}
DEVICE u16 rounded(float v, int dtype) { return dtype == FLOAT16 ? float_to_half(v) : float_to_bfloat(v); }
