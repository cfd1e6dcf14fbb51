"""Generate images with and without a method that mends neglect; the denoising loop stays diffusers' own.

applied(pipe, method, prompt, targets, seeds)   a method on a pipeline of yours, for the length of a block
generate(pipe, request, method, trace=store)    the same in one call, traced if you like
METHODS                                         the methods by name, each with the constants that were released
combined(one, other)                            several at once, where that makes sense
AttentionRegulation(), PAPER, FIXED             attention regulation as released, as printed, and mended
Given(groups=..., layout=..., concepts=...)     what else is known of a prompt
"""

from regulate.applied import applied
from regulate.attention_regulation import FIXED, PAPER, AttentionRegulation
from regulate.catalogue import METHODS
from regulate.combined import combined
from regulate.generate import Request, generate
from regulate.method import Given, Method

__all__ = [
    "FIXED",
    "METHODS",
    "PAPER",
    "AttentionRegulation",
    "Given",
    "Method",
    "Request",
    "applied",
    "combined",
    "generate",
]
