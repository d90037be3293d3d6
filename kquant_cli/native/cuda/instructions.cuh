// Instructions of sm_90 by name: NVRTC compiles this without any header of CUDA's. The tests' emulator has the same names.
#pragma once
typedef unsigned int u32;
typedef unsigned short u16;
typedef u32 saddr;  // an address in shared memory
#define DEVICE __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define CLUSTER8 __cluster_dims__(8, 1, 1)
#define IN_REGISTER(v) asm volatile("" : "+r"(v))  // or an address is computed anew at each use
#define SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]

DEVICE saddr shared(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Bytes of (a, b) picked by the four low nibbles of s; bit 3 of a nibble replaces the byte by its sign.
DEVICE u32 prmt(u32 a, u32 b, u32 s) { u32 r; asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(s)); return r; }

// c (16 x 8) += a (16 x 32) b (32 x 8), signed bytes; or a (16 x 16) b (16 x 8), pairs of float16.
DEVICE void multiply(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
    : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DEVICE void multiply(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
    : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

DEVICE void add_shared(int* p, int v) { atomicAdd(p, v); }
DEVICE void add_shared(long long* p, long long v) { atomicAdd((unsigned long long*)p, (unsigned long long)v); }

// 16 bytes to shared memory, zeros where not ok (nothing is read then).
DEVICE void cp_async(saddr d, const void* s, bool ok) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" :: "r"(d), "l"(s), "r"(ok ? 16 : 0) : "memory");
}
DEVICE void cp_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> DEVICE void cp_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory"); }

DEVICE uint4 lds(saddr p) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(p) : "memory");
  return v;
}
DEVICE u32 lds_word(saddr p) { u32 v; asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(p) : "memory"); return v; }
// 16 or 8 bytes, only where the column is in use.
template <int COLUMNS> DEVICE void lds_if(uint4& v, saddr p, int column) {
  if (COLUMNS >= 8) { v = lds(p); return; }
  asm volatile("{ .reg .pred p; setp.lt.s32 p, %5, %6; @p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4]; }"
    : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w) : "r"(p), "r"(column), "n"(COLUMNS) : "memory");
}
template <int COLUMNS> DEVICE void lds_if(uint2& v, saddr p, int column) {
  asm volatile("{ .reg .pred p; setp.lt.s32 p, %3, %4; @p ld.shared.v2.u32 {%0, %1}, [%2]; }"
    : "+r"(v.x), "+r"(v.y) : "r"(p), "r"(column), "n"(COLUMNS) : "memory");
}

// A barrier for one arrival, by one thread before a __syncthreads; a copy in bulk that arrives at it, by one thread;
// the wait for the end of a phase, the first of which has parity 0.
DEVICE void barrier_init(void* b) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(shared(b)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
DEVICE void bulk_load(void* d, const void* s, u32 bytes, void* b) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(shared(b)), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
    :: "r"(shared(d)), "l"(s), "r"(bytes), "r"(shared(b)) : "memory");
}
DEVICE void barrier_wait(void* b, u32 parity) {
  u32 done = 0;
  while (!done)
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
      : "=r"(done) : "r"(shared(b)), "r"(parity) : "memory");
}

// A kernel may begin while the one before it runs: it waits for its end before it reads what that wrote, or writes.
DEVICE void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
DEVICE void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
DEVICE u32 at_rank(const void* p, int rank) {
  u32 r; asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(shared(p)), "r"(rank)); return r;
}
DEVICE float2 remote_load(const float* p, int rank) {
  float2 v; asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(at_rank(p, rank)) : "memory"); return v;
}
DEVICE void remote_store(u32* p, int rank, u32 x) {
  asm volatile("st.shared::cluster.u32 [%0], %1;" :: "r"(at_rank(p, rank)), "r"(x) : "memory");
}

DEVICE u32 shuffle_xor(u32 v, int x) { return __shfl_xor_sync(0xffffffffu, v, x); }
DEVICE long long round_long(float v) { return __float2ll_rn(v); }
DEVICE int round_int(float v) { return __float2int_rn(v); }
DEVICE u32 float_to_bits(float v) { return __float_as_uint(v); }
DEVICE float bits_to_float(u32 v) { return __uint_as_float(v); }
DEVICE int bit_count(u32 v) { return __popc(v); }
DEVICE float half_to_float(u16 h) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(h)); return r; }
DEVICE u16 float_to_half(float v) { u16 r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }
DEVICE float bfloat_to_float(u16 h) { return __uint_as_float((u32)h << 16); }
DEVICE u16 float_to_bfloat(float v) { u16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v)); return r; }
