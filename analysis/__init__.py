"""Analyse what was traced and measured: look into a trace, compare methods, and what these are made of.

explore(trace)                         a widget: maps over images, words over steps, heads by layers
demo(out)                              one prompt, plain and regulated, as a page
compare(prompts, seeds, methods, out)  does a method help? resumable, with intervals
ablate(prompts, seeds, factors, out)   one hyper-parameter changed at a time
search(prompts, seeds, out)            Optuna looks for better hyper-parameters
"""

from analysis.compare import compare
from analysis.demo import demo
from analysis.explorer.widget import explore
from analysis.search import ablate, search

__all__ = ["ablate", "compare", "demo", "explore", "search"]
