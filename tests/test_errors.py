"""What counts as a shortage of memory, wherever in a chain of errors it is."""

import errno

import pytest

from kquant_cli.errors import KQuantError, MemoryShortage, is_shortage

SHORT = [
    MemoryError(),
    MemoryShortage("too little"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("can't start new thread"),
    RuntimeError("could not create a primitive"),
    UserWarning("mkldnn_matmul failed, switching to BLAS gemm: could not create a primitive"),
    ImportError("libx.so: failed to map segment from shared object: Cannot allocate memory"),
]
OTHERS = [ValueError("out of memory"), OSError(errno.ENOSPC, "No space left on device"), IndexError("out of range")]


@pytest.mark.parametrize("error", SHORT, ids=str)
def test_a_shortage_is_found_behind_other_errors(error):
    assert is_shortage(error)
    with pytest.raises(KQuantError) as caught:
        raise_for(error)
    assert is_shortage(caught.value)
    assert is_shortage(caught.value.__cause__)


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_none(error):
    assert not is_shortage(error)


def raise_for(error):
    try:
        try:
            raise error
        except Exception as first:
            raise ValueError("cannot be loaded") from first
    except ValueError as second:
        raise KQuantError("cannot be run") from second


def test_an_error_that_hides_what_led_to_it_is_none():
    def hidden():
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("nothing else") from None

    with pytest.raises(ValueError, match="nothing else") as caught:
        hidden()
    assert not is_shortage(caught.value)


def test_a_sentence_steers_no_terminal_whoever_prints_it():
    """Names in it may come from anybody's file, and transformers or a notebook may show it."""
    said = str(KQuantError("file \x1b[31ma\x7f\u202eb\x9b\r is damaged,\nthat is all"))
    assert said == "file \ufffd[31ma\ufffd\ufffdb\ufffd\ufffd is damaged,\nthat is all"
