// Codes of up to 16 levels as lookup.h reads them (runtime/blocks.py): the indices of byte shuffles.
//
// 64 rows are a block, and what a block holds for one look-up is a slot: the codes of `per` neighbouring columns,
//
//     levels  2         4 columns of 1 bit a slot
//     levels  3, 4      2 columns of 2 bits
//     levels  5 ..  8   1 column of 3 bits
//     levels  9 .. 16   1 column of 4 bits
//
// the first column in the lowest bits. A row's slots are filled up with zeros to steps of 16. In a step of a block slots
// s and s + 8 stand side by side, 32 bytes each:
//
//     4 bits a slot    [s = 0 .. 7][2][32]    row i in the low nibble, row 32 + i in the high one
//     3 bits a slot    [q = 0 .. 5][2][32]    bits 0 .. 2 and 3 .. 5 of q are slot s = q; slots 6 and 7 are in bits 6, 7:
//                                             of q = 0 and bit 6 of 1 (6, lower rows), of 2 and bit 7 of 1 (6, upper),
//                                             of q = 3 and bit 6 of 4 (7, lower rows), of 5 and bit 7 of 4 (7, upper)
//
// Row i of 32 is in byte 2 (i % 16) + i / 16: the even bytes' sums are then those of the first 16 rows.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

#define INLINE inline __attribute__((always_inline))

constexpr long BLOCK_ROWS = 64, STEP = 16;

struct Blocks {
    int bits, per;  // of a code; columns a slot
    long rows, columns, slots, count, step_bytes, bytes;

    Blocks(long rows, long columns, int levels) : rows(rows), columns(columns) {
        bits = levels <= 2 ? 1 : levels <= 4 ? 2 : levels <= 8 ? 3 : 4;
        per = bits == 1 ? 4 : bits == 2 ? 2 : 1;
        slots = ((columns + per - 1) / per + STEP - 1) / STEP * STEP;
        count = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
        step_bytes = bits == 3 ? 384 : 512;
        bytes = slots / STEP * step_bytes;  // of a block
    }

    long width() const { return slots * per; }  // columns, filled up
};

INLINE long byte_of(long row) { return 2 * (row % 16) + row % 32 / 16; }

INLINE void put_code(const Blocks &blocks, uint8_t *block, long slot, long row, unsigned value) {
    const long s = slot % 8, side = 32 * (slot % STEP / 8) + byte_of(row), upper = row / 32;
    uint8_t *const at = block + slot / STEP * blocks.step_bytes + side;
    if (blocks.bits != 3) {
        at[64 * s] |= value << 4 * upper;
    } else if (s < 6) {
        at[64 * s] |= value << 3 * upper;
    } else {
        const long first = 3 * (s - 6);
        at[64 * (first + 2 * upper)] |= (value & 3) << 6;
        at[64 * (first + 1)] |= (value >> 2) << (6 + upper);
    }
}

INLINE unsigned code_of(const Blocks &blocks, const uint8_t *block, long slot, long row) {
    const long s = slot % 8, side = 32 * (slot % STEP / 8) + byte_of(row), upper = row / 32;
    const uint8_t *const at = block + slot / STEP * blocks.step_bytes + side;
    if (blocks.bits != 3) return at[64 * s] >> 4 * upper & 15;
    if (s < 6) return at[64 * s] >> 3 * upper & 7;
    const long first = 3 * (s - 6);
    return at[64 * (first + 2 * upper)] >> 6 | (at[64 * (first + 1)] >> (6 + upper) & 1) << 2;
}

}  // namespace
