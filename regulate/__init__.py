"""Generate images with and without a method that mends neglect; the denoising loop stays diffusers' own.

applied(pipe, method, prompt, targets, seeds)   a method on a pipeline of yours, for the length of a block
generate(pipe, request, method, trace=store)    the same in one call, traced if you like
METHODS                                         the methods by name
"""

from regulate.applied import applied
from regulate.attention_regulation import AttentionRegulation
from regulate.generate import Request, generate
from regulate.method import Method

METHODS: dict[str, Method] = {method.name: method for method in (Method(), AttentionRegulation())}

__all__ = ["METHODS", "AttentionRegulation", "Method", "Request", "applied", "generate"]
