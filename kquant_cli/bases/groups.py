"""Bits of an index in groups: a fast transform of 2^bits numbers is one small matrix product for each group."""


def split_bits(bits: int, largest: int) -> list[int]:
    """`bits` in the fewest groups of at most `largest`, as equal as can be, the smaller first; [0] for 0 bits."""
    count = max(1, -(-bits // largest))
    return [bits // count + (i >= count - bits % count) for i in range(count)]
