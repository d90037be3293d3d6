"""Quiet while it lasts, and every setting as it was afterwards."""

import pytest
from transformers.utils import logging

from kquant_cli.hf.quiet import quiet


@pytest.mark.parametrize("bars", [True, False])
def test_settings_are_given_back(bars: bool) -> None:
    before, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
        with pytest.raises(KeyError), quiet():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
            raise KeyError
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() == bars
    finally:
        logging.set_verbosity(before)
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
