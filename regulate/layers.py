"""Which attention layers are edited, found from the model's own structure."""

from collections.abc import Sequence
from fnmatch import fnmatch
from itertools import groupby

from diffusers import UNet2DConditionModel

LAST_DOWN_FIRST_UP = "last-down-first-up"
LAST_DOWN_SIZE = "last-down-size"


def chosen_sites(
    sites: Sequence[str], layers: str | Sequence[str] = LAST_DOWN_FIRST_UP, per_transformer: int | None = 1
) -> tuple[str, ...]:
    """Return the sites to edit, in the order in which they run.

    "last-down-first-up" is the choice of arXiv 2403.06381, section 4.1: the last block on the way down and the first on
    the way up that attend to text. Stable Diffusion 1.x and 2.x have five such layers, each in a transformer of its
    own. SDXL has five transformers there too, but of ten layers each: of these the middle one is taken, which is ours.

    Args:
        sites: of the model, see `tracer.sites.attention_sites`.
        layers: "last-down-first-up", or patterns of site names (``"up_blocks.1.*"``), or one of them; patterns choose
            all that fit.
        per_transformer: for "last-down-first-up", how many layers of one transformer, evenly spread; None for all.

    Raises:
        ValueError: no site fits.
    """
    if per_transformer is not None and per_transformer < 1:
        raise ValueError(f"per_transformer must be at least 1, or None for all, got {per_transformer}")
    if layers == LAST_DOWN_FIRST_UP:
        down = [_block(site) for site in sites if site.startswith("down_blocks.")][-1:]
        up = [_block(site) for site in sites if site.startswith("up_blocks.")][:1]
        chosen = _thinned([site for site in sites if _block(site) in down + up], per_transformer)
    else:
        patterns = (layers,) if isinstance(layers, str) else layers
        chosen = [site for site in sites if any(fnmatch(site, pattern) for pattern in patterns)]
    if not chosen:
        raise ValueError(f"no attention site fits layers={layers!r}; the model has {', '.join(sites)}")
    return tuple(chosen)


def sites_of_one_size(
    unet: UNet2DConditionModel, sites: Sequence[str], layers: str | Sequence[str] = LAST_DOWN_SIZE
) -> tuple[str, ...]:
    """Return sites whose maps are of one size, so that their mean can be taken.

    "last-down-size": those whose maps are as large as the last block's on the way down that attends to text. In Stable
    Diffusion 1.x and 2.x at 512 pixels these are the five of 16x16, which Attend-and-Excite and its followers take; at
    768 pixels they are of 24x24; in SDXL they are the sixty of 32x32, those of its middle among them.

    Args:
        unet: the network.
        sites: of text attention, or of self-attention.
        layers: "last-down-size", or what `chosen_sites` takes.

    Raises:
        ValueError: no site fits, or their maps are of several sizes.
    """
    halvings = _halvings(unet)
    if layers == LAST_DOWN_SIZE:
        down = [site for site in sites if site.startswith("down_blocks.")][-1:]
        wanted = {halvings[_block(site)] for site in down}
        layers = [site for site in sites if halvings[_block(site)] in wanted]
    chosen = chosen_sites(sites, layers, None)
    if len({halvings[_block(site)] for site in chosen}) > 1:
        raise ValueError(f"layers must have maps of one size, got {', '.join(chosen)}")
    return chosen


def _halvings(unet: UNet2DConditionModel) -> dict[str, int]:
    """Return how often the latents' side is halved before each block."""
    found, count = {}, 0
    for index, block in enumerate(unet.down_blocks):
        found[f"down_blocks.{index}"] = count
        count += getattr(block, "downsamplers", None) is not None
    found["mid_block"] = found["mid_block.attentions"] = count
    for index, block in enumerate(unet.up_blocks):
        found[f"up_blocks.{index}"] = count
        count -= getattr(block, "upsamplers", None) is not None
    return found


def _block(site: str) -> str:
    return ".".join(site.split(".")[:2])


def _thinned(sites: list[str], count: int | None) -> list[str]:
    """Return `count` sites of each transformer: the middles of so many equal parts of its layers."""
    kept = []
    for _, group in groupby(sites, lambda site: site.split(".transformer_blocks.")[0]):
        layers = list(group)
        parts = len(layers) if count is None else min(count, len(layers))
        kept += [layers[(2 * part + 1) * len(layers) // (2 * parts)] for part in range(parts)]
    return kept
