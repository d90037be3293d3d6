"""How inputs of different lengths are put into batches: longest first, so that little is padded and memory runs out
at once or never."""

from collections.abc import Callable, Iterator, Sequence


def longest_first(lengths: Sequence[int], size: Callable[[int], int]) -> Iterator[list[int]]:
    """Batches of indexes into `lengths`, longest first; as many at once as `size` says for the longest of a batch."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    while order:
        count = size(lengths[order[0]])
        yield order[:count]
        order = order[count:]
