"""The bars of other libraries that load weights: left out for models so small that a bar only flickers."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def no_loading_bars(wanted: bool = True) -> Iterator[None]:
    """Show no bars while the block runs, if that is wanted; afterwards all is as it was."""
    shown = [each for each in (diffusers_logging, transformers_logging) if each.is_progress_bar_enabled()]
    try:
        for each in shown if wanted else ():
            each.disable_progress_bar()
        yield
    finally:
        for each in shown if wanted else ():
            each.enable_progress_bar()
