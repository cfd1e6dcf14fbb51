"""Analyse what was traced and measured: the demo, the comparison of methods, and what they are made of.

demo(out)                              one prompt, plain and regulated, as a page
compare(prompts, seeds, methods, out)  does a method help? resumable, with intervals
search(prompts, seeds, out)            the same after a search over regulation's variants
"""

from analysis.compare import compare, search
from analysis.demo import demo

__all__ = ["compare", "demo", "search"]
