"""The attention maps of a moment, with the graph that leads from the latents to them.

Conventions: maps are means over the heads and layers of the chosen sites, edited maps where an edit acts; float32. The
network's parameters are frozen, and its pass counts as one of guidance. Latents and losses are float32 whatever the
model's type; within a float16 network gradients are float16 all the same, and those of very flat losses vanish there
(bfloat16 keeps them).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn

from regulate.loop import Moment
from tracer.attention import attending, recorded
from tracer.passes import Passes
from tracer.rows import CallKind
from tracer.tap import Edited, Tap


@dataclass(frozen=True)
class Maps:
    """What the images attend to.

    Attributes:
        text: each token's map.
        own: each pixel's attention to all pixels; of no pixel where it was not asked for.
    """

    text: Float[Tensor, "image token height width"]
    own: Float[Tensor, "image pixel key"]


class _AllSeen(Exception):
    """Ends a pass of the network behind the last of the maps: what would follow has no part in any of them."""


@dataclass(frozen=True)
class Looker:
    """Makes a pass of the network, as far as it is needed, and returns the maps that it had.

    Attributes:
        pipe: whose network it is.
        passes: where the pipeline's loop stands.
        sites: of text attention, with maps of one size.
        own: of self-attention, likewise; may be none.
        scaled: whether latents are scaled as the scheduler wants it; published code leaves that out.
    """

    pipe: DiffusionPipeline
    passes: Passes
    sites: tuple[str, ...]
    own: tuple[str, ...] = ()
    scaled: bool = True

    def __call__(
        self, moment: Moment, latents: Float[Tensor, "image channel height width"], kind: CallKind = "guidance"
    ) -> Maps:
        """Return the maps of these latents at a moment, through a pass of its own.

        Args:
            moment: timestep and texts.
            latents: in the place of the moment's.
            kind: of the pass, for the trace.

        Raises:
            ValueError: the maps are of several sizes.
        """
        unet, sites = self.pipe.unet, self.sites + self.own
        taps: dict[str, tuple[Tap, Tensor]] = {}
        shared = recorded(unet)  # somebody else wants the rest of the pass

        def record(tap: Tap, edited: Edited | None) -> None:
            maps = tap.maps() if edited is None else edited.probs.transpose(-1, -2)
            taps[tap.site] = tap, maps.sum(1)
            if len(taps) == len(sites) and not shared:
                raise _AllSeen

        seen = moment.scale(latents) if self.scaled else latents
        with self.passes.marked(kind, ahead=True), attending(unet, sites, record=record), suppress(_AllSeen):
            unet(seen.to(unet.dtype), moment.timestep, **moment.inputs)
        text = _mean([taps[site] for site in self.sites])
        own = _mean([taps[site] for site in self.own]) if self.own else text.new_empty(len(text), 0, 0, 0)
        return Maps(text, own.flatten(2).transpose(-1, -2))


def _mean(taps: Sequence[tuple[Tap, Tensor]]) -> Float[Tensor, "image token height width"]:
    """Return the mean over all heads of all layers."""
    sizes = {(tap.height, tap.width) for tap, _ in taps}
    if len(sizes) > 1:
        raise ValueError(f"layers must have maps of one size, got {sorted(sizes)}")
    heads = sum(tap.query.shape[1] for tap, _ in taps)
    return (sum(maps for _, maps in taps) / heads).unflatten(-1, sizes.pop())  # pyright: ignore


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Compute gradients while the block runs, but of none of the network's parameters.

    Raises:
        ValueError: the pipeline runs in torch's inference mode, where there are no gradients.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("latents cannot be guided in torch.inference_mode(); call the pipeline outside of it")
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
