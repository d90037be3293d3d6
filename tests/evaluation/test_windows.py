"""The windows of the two protocols, against the loops that the field uses."""

import pytest

from kquant_cli.errors import KQuantError
from kquant_cli.evaluation.windows import Protocol, Window, select, settle


def test_gptq_windows_do_not_overlap_and_drop_the_tail() -> None:
    windows = Protocol("gptq", 10, 10).windows(35)
    assert windows == [Window(0, 10, 10), Window(10, 20, 10), Window(20, 30, 10)]
    assert [window.predictions for window in windows] == [9, 9, 9]


def fixed_length_loop(tokens: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """The loop of transformers' page on the perplexity of fixed-length models, written out."""
    found, previous_end = [], 0
    for begin in range(0, tokens, stride):
        end = min(begin + length, tokens)
        found.append((begin, end, end - previous_end))
        previous_end = end
        if end == tokens:
            break
    return found


@pytest.mark.parametrize(
    ("tokens", "length", "stride"), [(100, 30, 7), (100, 30, 10), (31, 30, 1), (30, 30, 9), (95, 30, 30)]
)
def test_stride_windows_are_those_of_the_fixed_length_loop(tokens: int, length: int, stride: int) -> None:
    windows = Protocol("stride", length, stride).windows(tokens)
    assert [(w.begin, w.end, w.scored) for w in windows] == fixed_length_loop(tokens, length, stride)
    assert sum(window.scored for window in windows) == windows[-1].end == tokens


def papers_loop(tokens: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """The loop of arXiv 2404.09737's code, written out."""
    found = []
    for i in range(0, tokens, stride):
        begin, end = max(i + stride - length, 0), min(i + stride, tokens)
        found.append((begin, end, end - i))
    return found


@pytest.mark.parametrize(("tokens", "length", "stride"), [(100, 30, 7), (100, 30, 10), (32, 30, 2), (95, 30, 30)])
def test_the_papers_windows_are_those_of_its_loop(tokens: int, length: int, stride: int) -> None:
    windows = Protocol("paper", length, stride).windows(tokens)
    assert [(w.begin, w.end, w.scored) for w in windows] == papers_loop(tokens, length, stride)
    assert sum(window.scored for window in windows) == windows[-1].end == tokens


def test_where_the_stride_divides_the_window_both_protocols_give_every_token_the_same_context() -> None:
    contexts = [
        {token: token - w.begin for w in Protocol(name, 30, 10).windows(95) for token in range(w.end - w.scored, w.end)}
        for name in ("stride", "paper")
    ]
    assert contexts[0] == contexts[1]


def test_a_last_token_that_nothing_predicts_makes_no_window() -> None:
    assert Protocol("stride", 30, 30).windows(61) == [Window(0, 30, 30), Window(30, 60, 30)]


def test_lengths_settle_on_the_models_maximum() -> None:
    assert settle("gptq", None, None, 4096) == Protocol("gptq", 2048, 2048)
    assert settle("gptq", None, None, 512) == Protocol("gptq", 512, 512)
    assert settle("gptq", None, None, None) == Protocol("gptq", 2048, 2048)
    assert settle("stride", None, None, 4096) == Protocol("stride", 4096, 512)
    assert settle("stride", None, None, 256) == Protocol("stride", 256, 256)
    assert settle("stride", 100, 100, 256) == Protocol("stride", 100, 100)
    assert settle("paper", None, None, 4096) == Protocol("paper", 4096, 512)


@pytest.mark.parametrize(
    ("name", "seqlen", "stride", "says"),
    [
        ("stride", 100, 101, "--stride 101 must be from 1 to the window of 100"),
        ("stride", 100, 0, "--stride 0 must be"),
        ("paper", 100, 1, "--stride 1 must be from 2 to"),
        ("gptq", None, 10, "--stride belongs to --protocol stride"),
        ("gptq", 257, None, "--seqlen 257 is longer than the model's maximum of 256"),
        ("gptq", 1, None, "--seqlen 2 or more"),
        ("word", None, None, "use gptq, stride or paper"),
    ],
)
def test_impossible_lengths_are_refused(name: str, seqlen: int | None, stride: int | None, says: str) -> None:
    with pytest.raises(KQuantError, match=says):
        settle(name, seqlen, stride, 256)


def test_limit_takes_the_first_windows() -> None:
    windows = Protocol("gptq", 10, 10).windows(100)
    assert select(windows, 3) == windows[:3]
    assert select(windows, None) == select(windows, 99) == windows
    with pytest.raises(KQuantError, match="--limit 0"):
        select(windows, 0)
