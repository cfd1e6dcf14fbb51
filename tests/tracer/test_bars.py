"""Bars of other libraries are off while small models load, and are then what they were."""

import pytest
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from tracer.bars import no_loading_bars

LIBRARIES = (diffusers_logging, transformers_logging)


def shown() -> list[bool]:
    return [library.is_progress_bar_enabled() for library in LIBRARIES]


@pytest.fixture(autouse=True)
def _as_before():
    before = shown()
    yield
    for library, on in zip(LIBRARIES, before, strict=True):
        (library.enable_progress_bar if on else library.disable_progress_bar)()


@pytest.mark.parametrize("first", [True, False])
def test_they_are_off_in_the_block_and_afterwards_as_they_were(first):
    (diffusers_logging.enable_progress_bar if first else diffusers_logging.disable_progress_bar)()
    transformers_logging.enable_progress_bar()
    with pytest.raises(KeyError), no_loading_bars():
        assert shown() == [False, False]
        raise KeyError
    assert shown() == [first, True]


def test_those_of_a_large_model_stay():
    for library in LIBRARIES:
        library.enable_progress_bar()
    with no_loading_bars(wanted=False):
        assert shown() == [True, True]
