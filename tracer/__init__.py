"""Trace the attention that text-to-image models pay to their text: one seam, one store, one rule for words.

recording(pipe, trace)                  every map of every call of a pipeline, in one line
Store                                   a trace file: SQL, a word's maps as an array, several files in one query
Capture, EVERYTHING                     what is kept: layers, steps, heads, tokens, precision, resolution
attending(model, sites, edit, record)   see, and change, attention while a block runs
Prompt, load_prompts                    texts with the words that an image must show
load_pipeline                           the emoji world, a local folder, or a hub model

In a notebook `%load_ext tracer` brings `%%sql`, which asks a trace in a cell of its own.
"""

from typing import TYPE_CHECKING

from tracer.attention import attending
from tracer.capture import EVERYTHING, Capture
from tracer.models import load_pipeline
from tracer.prompts import Prompt, load_prompts
from tracer.record import Recorder
from tracer.recording import recording
from tracer.sites import attention_sites
from tracer.store import Store

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

__all__ = [
    "EVERYTHING",
    "Capture",
    "Prompt",
    "Recorder",
    "Store",
    "attending",
    "attention_sites",
    "load_pipeline",
    "load_prompts",
    "recording",
]


def load_ipython_extension(ipython: "InteractiveShell") -> None:
    """Bring the magic `%%sql` into a notebook; `%load_ext tracer` calls this."""
    from tracer.magic import TraceSQL  # IPython is not needed to trace

    ipython.register_magics(TraceSQL)
