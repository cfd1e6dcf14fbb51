"""Analyse what was traced and measured: look into a trace, compare methods, and what these are made of.

explore(trace)                         a widget: maps over images, words over steps, heads by layers
demo(out)                              one prompt, plain and regulated, as a page
compare(prompts, seeds, methods, out)  does a method help? resumable, with intervals
ablate(prompts, seeds, factors, out)   one hyper-parameter changed at a time
search(prompts, seeds, out)            Optuna looks for better hyper-parameters

The last three return `Compared` and `Searched`, which show themselves in a cell.
"""

from analysis.compare import compare
from analysis.comparison import Compared
from analysis.demo import demo
from analysis.explorer.widget import explore
from analysis.search import Searched, ablate, search

__all__ = ["Compared", "Searched", "ablate", "compare", "demo", "explore", "search"]
