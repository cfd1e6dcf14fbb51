"""Trace the cross-attention of text-to-image models: one seam, one store, one rule for words.

attending(model, sites, edit, record)   see, and change, attention while a block runs
Recorder, Store                         every map of every pass in DuckDB, and how to ask for it
Prompt, load_prompts                    texts with the words that an image must show
load_pipeline                           the emoji world, a local folder, or a hub model
"""

from tracer.attention import attending, cross_attention_sites
from tracer.models import load_pipeline
from tracer.prompts import Prompt, load_prompts
from tracer.record import Recorder
from tracer.rows import Capture
from tracer.store import Store

__all__ = [
    "Capture",
    "Prompt",
    "Recorder",
    "Store",
    "attending",
    "cross_attention_sites",
    "load_pipeline",
    "load_prompts",
]
