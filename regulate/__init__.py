"""Generate images with and without a method that mends neglect; the denoising loop stays diffusers' own.

applied(pipe, method, prompt, targets, seeds)   a method on a pipeline of yours, for the length of a block
generate(pipe, request, method, trace=store)    the same in one call, traced if you like
METHODS                                         the methods by name
AttentionRegulation(), PAPER, FIXED             attention regulation as released, as printed, and mended
"""

from regulate.applied import applied
from regulate.attention_regulation import FIXED, PAPER, AttentionRegulation
from regulate.generate import Request, generate
from regulate.method import Method

METHODS: dict[str, Method] = {
    "plain": Method(),
    "regulation": AttentionRegulation(),
    "regulation-paper": PAPER,
    "regulation-fixed": FIXED,
}

__all__ = ["FIXED", "METHODS", "PAPER", "AttentionRegulation", "Method", "Request", "applied", "generate"]
