// Runs the CUDA sources on an x86-64 CPU, lane by lane: a fiber for each thread, warps in step where they meet.
//
// cp.async copies when it is waited for; shared memory begins with noise, has guards behind it, and addresses are
// checked for their alignment; blocks of a cluster run side by side. Not emulated: the order of the memory of threads
// that do not synchronise, kernels that begin before the one before them ended, conflicts of banks.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) float2 { float x, y; };
struct Index { unsigned x, y, z; };
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char* saddr;
#define __launch_bounds__(...)
#define DEVICE static inline
#define KERNEL extern "C" void
#define CLUSTER8
#define IN_REGISTER(v)

namespace emulator {
enum State { READY, BLOCK, CLUSTER, DONE };
struct Copy { void* to; const void* from; bool ok; };
struct Fiber { void* sp; char* stack; State state; int cta; Index tid; std::vector<Copy> open; std::deque<std::vector<Copy>> groups; };
struct Warp { int arrived = 0; unsigned generation = 0; unsigned in[32][6], out[32][4]; int sums[32][4]; };
constexpr int STACK = 32768, MOST_FIBERS = 8 * 512;
static Fiber* fibers;
static Warp* warps;
static Fiber* current;
static void* main_sp;
static unsigned char* memory;
static size_t stride;
static Index block_index, grid, block;
static int block_arrived[8], cluster_arrived;
static void (*entry)();

[[noreturn]] static void fail(const char* what) { fprintf(stderr, "emulator: %s, block %u\n", what, block_index.x); abort(); }
static void aligned(const void* p, size_t to) { if ((size_t)p % to) fail("an address is not aligned"); }

extern "C" void emulator_switch(void** from, void* to);
asm(R"(
.text
.globl emulator_switch
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
)");
static void yield() { Fiber* f = current; emulator_switch(&f->sp, main_sp); }
static void start() {
  entry();
  current->open.clear();
  current->groups.clear();
  current->state = DONE;
  yield();
  abort();
}
static int lane() { return current->tid.x & 31; }
static Warp& warp() { return warps[(current->cta * block.x + current->tid.x) >> 5]; }
template <class F> static void together(F f) {  // the last lane to arrive computes for all
  Warp& w = warp();
  const unsigned generation = w.generation;
  if (++w.arrived == 32) { w.arrived = 0; f(w); ++w.generation; } else while (w.generation == generation) yield();
}
static void run(int per, int blocks) {  // `blocks` blocks of `per` threads side by side
  const int n = per * blocks;
  for (int i = 0; i < n; ++i) {
    Fiber& f = fibers[i];
    f.cta = i / per; f.tid = {(unsigned)(i % per), 0, 0}; f.state = READY;
    void** sp = (void**)(((size_t)f.stack + STACK - 64) & ~(size_t)15);
    *--sp = 0; *--sp = (void*)start; sp -= 6; memset(sp, 0, 48); f.sp = sp;
  }
  for (int w = 0; w < n / 32; ++w) warps[w].arrived = 0;
  for (int b = 0; b < blocks; ++b) block_arrived[b] = 0;
  cluster_arrived = 0;
  int done = 0, idle = 0;
  while (done < n) {
    bool moved = false;
    for (int w = 0; w < n / 32; ++w)
      for (bool again = true; again;) {
        again = false;
        for (int l = 0; l < 32; ++l) {
          Fiber& f = fibers[w * 32 + l];
          if (f.state != READY) continue;
          const unsigned generation = warps[w].generation;
          const int arrived = warps[w].arrived;
          current = &f;
          emulator_switch(&main_sp, f.sp);
          if (f.state == DONE) ++done;
          if (f.state != READY) moved = true;
          else if (warps[w].generation != generation || warps[w].arrived != arrived) again = moved = true;
        }
      }
    for (int b = 0; b < blocks; ++b)
      if (block_arrived[b] == per) { block_arrived[b] = 0; for (int i = 0; i < per; ++i) fibers[b * per + i].state = READY; moved = true; }
    if (cluster_arrived == n) { cluster_arrived = 0; for (int i = 0; i < n; ++i) fibers[i].state = READY; moved = true; }
    idle = moved ? 0 : idle + 1;
    if (idle > 3) fail("no thread can go on");
  }
}
static void launch(void (*e)(), unsigned blocks, unsigned threads, size_t bytes, unsigned cluster) {
  entry = e; grid = {blocks, 1, 1}; block = {threads, 1, 1};
  if (threads * cluster > MOST_FIBERS || blocks % cluster) fail("no such launch");
  static int have = 0;
  if (!fibers) { fibers = new Fiber[MOST_FIBERS]; warps = new Warp[MOST_FIBERS / 32]; }
  for (; have < (int)(threads * cluster); ++have) fibers[have].stack = (char*)malloc(STACK);
  stride = (bytes + 2048 + 1023) & ~(size_t)1023;
  unsigned char* raw = (unsigned char*)malloc(stride * cluster + 1024);
  memory = (unsigned char*)(((size_t)raw + 1023) & ~(size_t)1023);
  for (unsigned b = 0; b < blocks; b += cluster) {
    block_index = {b, 0, 0};
    for (unsigned k = 0; k < cluster; ++k) { memset(memory + k * stride, 0xA7 + 13 * (b + k), bytes); memset(memory + k * stride + bytes, 0x5C, stride - bytes); }
    run(threads, cluster);
    for (unsigned k = 0; k < cluster; ++k)
      for (size_t i = bytes; i < stride; ++i) if (memory[k * stride + i] != 0x5C) fail("a block wrote behind its shared memory");
  }
  free(raw);
}

// The kernels by name, called with pointers to their arguments.
struct Kernel { void (*f)(); unsigned cluster; };
static std::map<std::string, Kernel>& kernels() { static std::map<std::string, Kernel> table; return table; }
static void** arguments;
template <auto F, class... A, size_t... I> void unpack(void (*)(A...), std::index_sequence<I...>) { F(*(A*)arguments[I]...); }
template <class... A> constexpr auto indices(void (*)(A...)) { return std::index_sequence_for<A...>(); }
template <auto F> void call() { unpack<F>(F, indices(F)); }
template <auto F> bool add(const char* name, unsigned cluster) { kernels()[name] = {call<F>, cluster}; return true; }
extern "C" int emulator_launch(const char* name, unsigned blocks, unsigned threads, unsigned bytes, void** given) {
  const auto found = kernels().find(name);
  if (found == kernels().end()) return 1;
  arguments = given;
  launch(found->second.f, blocks, threads, bytes, found->second.cluster);
  return 0;
}

static Index my_block() { Index b = block_index; b.x += current->cta; return b; }
}  // namespace emulator
#define threadIdx (emulator::current->tid)
#define blockIdx (emulator::my_block())
#define gridDim (emulator::grid)
#define SHARED_MEMORY(name) unsigned char* name = emulator::memory + emulator::current->cta * emulator::stride
static void __syncthreads() { emulator::Fiber* f = emulator::current; ++emulator::block_arrived[f->cta]; f->state = emulator::BLOCK; emulator::yield(); }

static saddr shared(const void* p) { return (saddr)p; }
static u32 prmt(u32 a, u32 b, u32 s) {
  const unsigned long long v = a | (unsigned long long)b << 32;
  u32 r = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 n = s >> 4 * i & 15, byte = v >> 8 * (n & 7) & 255;
    r |= (n & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return r;
}
static void multiply(int* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  const int l = emulator::lane();
  emulator::Warp& me = emulator::warp();
  const u32 v[6] = {a0, a1, a2, a3, b0, b1};
  memcpy(me.in[l], v, 24);
  memcpy(me.sums[l], c, 16);
  emulator::together([](emulator::Warp& w) {
    static int A[16][32], B[32][8];
    for (int i = 0; i < 32; ++i)
      for (int e = 0, g = i >> 2, q = i & 3; e < 4; ++e) {
        A[g][4 * q + e] = (signed char)(w.in[i][0] >> 8 * e); A[g + 8][4 * q + e] = (signed char)(w.in[i][1] >> 8 * e);
        A[g][4 * q + 16 + e] = (signed char)(w.in[i][2] >> 8 * e); A[g + 8][4 * q + 16 + e] = (signed char)(w.in[i][3] >> 8 * e);
        B[4 * q + e][g] = (signed char)(w.in[i][4] >> 8 * e); B[4 * q + 16 + e][g] = (signed char)(w.in[i][5] >> 8 * e);
      }
    for (int i = 0; i < 32; ++i)
      for (int e = 0; e < 4; ++e) {
        const int row = (i >> 2) + 8 * (e >> 1), n = 2 * (i & 3) + (e & 1);
        for (int k = 0; k < 32; ++k) w.sums[i][e] += A[row][k] * B[k][n];
      }
  });
  memcpy(c, me.sums[l], 16);
}
static float half_to_float(u16 h) { _Float16 f; memcpy(&f, &h, 2); return (float)f; }
static void multiply(float* c, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  const int l = emulator::lane();
  emulator::Warp& me = emulator::warp();
  const u32 v[6] = {a0, a1, a2, a3, b0, b1};
  memcpy(me.in[l], v, 24);
  memcpy(me.sums[l], c, 16);
  emulator::together([](emulator::Warp& w) {
    static float A[16][16], B[16][8];
    for (int i = 0; i < 32; ++i)
      for (int e = 0, g = i >> 2, q = i & 3; e < 2; ++e) {
        A[g][2 * q + e] = half_to_float(w.in[i][0] >> 16 * e); A[g + 8][2 * q + e] = half_to_float(w.in[i][1] >> 16 * e);
        A[g][2 * q + 8 + e] = half_to_float(w.in[i][2] >> 16 * e); A[g + 8][2 * q + 8 + e] = half_to_float(w.in[i][3] >> 16 * e);
        B[2 * q + e][g] = half_to_float(w.in[i][4] >> 16 * e); B[2 * q + 8 + e][g] = half_to_float(w.in[i][5] >> 16 * e);
      }
    for (int i = 0; i < 32; ++i)
      for (int e = 0; e < 4; ++e) {
        const int row = (i >> 2) + 8 * (e >> 1), n = 2 * (i & 3) + (e & 1);
        float sum;
        memcpy(&sum, &w.sums[i][e], 4);
        for (int k = 0; k < 16; ++k) sum += A[row][k] * B[k][n];
        memcpy(&w.sums[i][e], &sum, 4);
      }
  });
  memcpy(c, me.sums[l], 16);
}
static void cp_async(saddr d, const void* s, bool ok) { emulator::aligned(d, 16); if (ok) emulator::aligned(s, 16); emulator::current->open.push_back({d, s, ok}); }
static void cp_commit() { emulator::current->groups.push_back(std::move(emulator::current->open)); emulator::current->open.clear(); }
template <int N> static void cp_wait() {
  auto& groups = emulator::current->groups;
  for (; (int)groups.size() > N; groups.pop_front())
    for (auto& c : groups.front()) { memset(c.to, 0, 16); if (c.ok) memcpy(c.to, c.from, 16); }
}
static u32 lds_word(saddr p) { emulator::aligned(p, 4); return *(u32*)p; }
static uint4 lds(saddr p) { emulator::aligned(p, 16); return *(uint4*)p; }
template <int COLUMNS, class V> static void lds_if(V& v, saddr p, int column) { emulator::aligned(p, sizeof(V)); if (column < COLUMNS || COLUMNS >= 8) v = *(V*)p; }
// The number of phases that have ended; what is copied is there at once.
static void barrier_init(void* b) { *(u32*)b = 0; }
static void bulk_load(void* d, const void* s, u32 bytes, void* b) { emulator::aligned(d, 16); emulator::aligned(s, 16); emulator::aligned((void*)(size_t)bytes, 16); memcpy(d, s, bytes); ++*(u32*)b; }
static void barrier_wait(void* b, u32 parity) { while ((*(volatile u32*)b & 1) == parity) emulator::yield(); }
static void wait_for_previous() {}
static void let_next_begin() {}
static void cluster_sync() { ++emulator::cluster_arrived; emulator::current->state = emulator::CLUSTER; emulator::yield(); }
template <class P> static P* at_rank(P* p, int rank) { return (P*)((char*)p + (long)(rank - emulator::current->cta) * (long)emulator::stride); }
static float2 remote_load(const float* p, int rank) { emulator::aligned(p, 8); return *(const float2*)at_rank(p, rank); }
static void remote_store(u32* p, int rank, u32 x) { *at_rank(p, rank) = x; }
static u32 shuffle_xor(u32 v, int x) {
  const int l = emulator::lane();
  emulator::Warp& me = emulator::warp();
  me.in[l][0] = v; me.in[l][1] = x;
  emulator::together([](emulator::Warp& w) { for (int i = 0; i < 32; ++i) w.out[i][0] = w.in[i ^ w.in[i][1]][0]; });
  return me.out[l][0];
}
template <class N> static void add_shared(N* p, N v) { emulator::aligned(p, sizeof(N)); *p += v; }
static long long round_long(float v) { return std::isnan(v) ? 0 : llrintf(v); }
static int round_int(float v) { return std::isnan(v) ? 0 : (int)nearbyintf(v); }
static u32 float_to_bits(float v) { u32 b; memcpy(&b, &v, 4); return b; }
static float bits_to_float(u32 b) { float v; memcpy(&v, &b, 4); return v; }
static int bit_count(u32 v) { return __builtin_popcount(v); }
static u16 float_to_half(float v) { const _Float16 f = (_Float16)v; u16 h; memcpy(&h, &f, 2); return h; }
static float bfloat_to_float(u16 h) { return bits_to_float((u32)h << 16); }
static u16 float_to_bfloat(float v) { const u32 b = float_to_bits(v); return std::isnan(v) ? 0x7fff : (u16)((b + 0x7fff + (b >> 16 & 1)) >> 16); }
