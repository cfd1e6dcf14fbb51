"""What a pipeline is called with, and what it returns, seen from outside.

While a block runs the pipeline is of a subclass of its own class, whose ``__call__`` tells a watcher; nothing else of
it changes, and afterwards it is of its own class again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import signature
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import DiffusionPipeline


@runtime_checkable
class Watcher(Protocol):
    """Hears of a pipeline's calls."""

    def began(self, call: "Call") -> None:
        """Hear that a call begins."""

    def returned(self, call: "Call", images: list[Any]) -> None:
        """Hear that it returned these images."""

    def failed(self, call: "Call") -> None:
        """Hear that it raised."""


class Call:
    """One call of a pipeline: its arguments by name, defaults included."""

    def __init__(self, arguments: dict[str, Any]):
        self.arguments = arguments

    @property
    def prompts(self) -> list[str] | None:
        """The prompt of each image, or None if embeddings were given in their place."""
        return self._of_each(self.arguments.get("prompt"))

    @property
    def negatives(self) -> list[str]:
        """The negative prompt of each image; empty where there is none."""
        images = len(self.prompts or [])
        negative = self._of_each(self.arguments.get("negative_prompt")) or [""]
        return negative * (images // len(negative)) if images % len(negative) == 0 else [""] * images

    def _of_each(self, prompt: str | list[str] | None) -> list[str] | None:
        if prompt is None:
            return None
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        return [text for text in texts for _ in range(self.arguments.get("num_images_per_prompt") or 1)]

    @property
    def other_texts(self) -> list[str]:
        """Names of arguments that give a further encoder (of SDXL, SD3, Flux) another text than the first."""
        pairs = [(f"{kind}_{i}", kind) for kind in ("prompt", "negative_prompt") for i in (2, 3)]
        given = self.arguments
        return [name for name, first in pairs if given.get(name) is not None and given[name] != given.get(first)]

    @property
    def seeds(self) -> list[int | None]:
        """The seed of each image's own generator; None where it has none of its own."""
        images, chance = len(self.prompts or []), self.arguments.get("generator")
        generators = list(chance) if isinstance(chance, list | tuple) else [chance] * images
        shared = not isinstance(chance, list | tuple) and images > 1
        return [g.initial_seed() if isinstance(g, torch.Generator) and not shared else None for g in generators]

    @property
    def separate(self) -> bool:
        """Whether the negative prompt has passes of its own (Flux's true guidance)."""
        scale = self.arguments.get("true_cfg_scale") or 1.0
        return scale > 1 and any(self.arguments.get(f"negative_prompt{end}") is not None for end in ("", "_embeds"))

    @property
    def guidance(self) -> float | None:
        """The scale of classifier-free guidance."""
        return self.arguments.get("true_cfg_scale" if self.separate else "guidance_scale")


@contextmanager
def overriding(pipe: DiffusionPipeline, **methods: Any) -> Iterator[None]:
    """Let the pipeline be of a subclass of its own class, with these methods, while the block runs.

    Blocks inside one another are left in the opposite order.
    """
    own = type(pipe)
    names = {name: getattr(own, name) for name in ("__module__", "__qualname__", "__doc__")}
    pipe.__class__ = type(own.__name__, (own,), {**names, **methods})
    try:
        yield
    finally:
        pipe.__class__ = own


@contextmanager
def calls_of(pipe: DiffusionPipeline, watcher: Watcher) -> Iterator[None]:
    """Tell `watcher` of the pipeline's calls while the block runs."""
    called: Any = type(pipe).__call__

    @wraps(called)
    def watched(self: DiffusionPipeline, *args: Any, **kwargs: Any) -> Any:
        bound = signature(called).bind(self, *args, **kwargs)
        bound.apply_defaults()
        call = Call(dict(bound.arguments))
        watcher.began(call)
        try:
            output = called(self, *args, **kwargs)
            first = output[0] if isinstance(output, tuple) else output.images
            watcher.returned(call, list(first))
        except BaseException:
            watcher.failed(call)
            raise
        return output

    with overriding(pipe, __call__=watched):
        yield
