"""T-SAM: the words' maps are as alike as the words are to the text encoder's own attention.

Source: T-SAM, CVPR 2025; the formulas as in the released code, github.com/t-sam-diffusion/code @135fffb, with the
paper's constants. The two differ in the wanted similarity: the paper divides the attention's rows by their sums, and
compares the fourth power as it is; the code raises to its power (3) first and divides then, as is done here with 4.

Conventions: those of `regulate.smoothing`. A text of s words has them at positions 1 to s, the end token at s + 1. Row
i of a similarity says how much of each word up to i the word i holds.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from regulate.guidance import Guidance, ImageLoss, Look
from regulate.method import ACTS, Standing, Subject
from regulate.smoothing import smoothed


def text_similarity(attention: Float[Tensor, "token token"], end: int, power: float) -> Float[Tensor, "word word"]:
    """Return the similarity that the text encoder sees: its attention among the words, sharpened, a row's sum being 1.

    Args:
        attention: probabilities of the text encoder, mean over its layers and heads.
        end: position of the end token.
        power: what the attention is raised to.

    Raises:
        ValueError: the end token leaves no word, or is beyond the attention.
    """
    if not 1 < end < len(attention):
        raise ValueError(f"end must be between 2 and {len(attention) - 1}, the last position, got {end}")
    sharp = attention[1:end, 1:end] ** power
    return sharp / (sharp.sum(1, keepdim=True) + 1e-7)


def t_sam_loss(
    maps: Float[Tensor, "token height width"], wanted: Float[Tensor, "word word"], smooth: bool = True
) -> Float[Tensor, ""]:
    """Return the distance of the maps' similarity to the wanted one.

    The maps' similarity is the cosine of each word's map to those of the words before it, 1 to itself, every row
    divided by its sum. Row i of s adds ``i / s`` of its sum of absolute differences; the first is left out.

    Args:
        maps: of all tokens.
        wanted: similarity of the words, as of `text_similarity`.
        smooth: whether the maps are smoothed first.

    Raises:
        ValueError: there are fewer maps than words, or no word.
    """
    words = len(wanted)
    if not 0 < words < len(maps):
        raise ValueError(f"wanted must be of 1 to {len(maps) - 1} words for {len(maps)} tokens, got {words}")
    chosen = maps[1 : words + 1]
    flat = normalize((smoothed(chosen) if smooth else chosen).flatten(1), dim=1)
    cosines = (flat @ flat.T).tril(-1) + torch.eye(words, dtype=maps.dtype, device=maps.device)
    similar = cosines / cosines.sum(1, keepdim=True)
    away = (wanted - similar).tril().abs().sum(1)[1:]
    return (away * torch.arange(2, words + 1, device=maps.device)).sum() / words


@torch.no_grad()
def text_attention(pipe: DiffusionPipeline, prompt: str) -> Float[Tensor, "token token"]:
    """Return the (first) text encoder's attention to a prompt, mean over its layers and heads.

    The encoder computes it by plain products for this one call, since fused attention does not tell it.
    """
    encoder, tokenizer = pipe.text_encoder, pipe.tokenizer
    given = tokenizer(prompt, padding="max_length", max_length=tokenizer.model_max_length, return_tensors="pt")
    usual = encoder.config._attn_implementation  # there is no public way to ask what `set_attn_implementation` set
    encoder.set_attn_implementation("eager")
    try:
        found = encoder(given["input_ids"].to(encoder.device), output_attentions=True).attentions
    finally:
        encoder.set_attn_implementation(usual)
    return torch.stack([layer[0].float().mean(0) for layer in found]).mean(0)


@dataclass(frozen=True)
class TSam(Guidance):
    """The method's hyper-parameters beside those of `Guidance`; each default is the paper's.

    Its released code has other constants (power 3, step 5, 30 steps, twenty moves at steps 0, 10 and 20), and its
    configuration leaves open which of two losses is meant; the other, 1 - cosine of the similarities, is not here.

    Attributes:
        step_size: 10 for prompts like Attend-and-Excite's, 40 for longer ones.
        power: what the text encoder's attention is raised to.
    """

    name: ClassVar[str] = "t-sam"
    step_size: float = 10.0
    scaled: bool = True
    needless: bool = False
    together: int | None = None
    power: float = 4.0

    def standing(self, subject: Subject) -> Standing:
        """Return "no-op" for a prompt of one token."""
        return ACTS if subject.end > 2 else Standing("no-op", "it is of one token")

    def loss_of(self, pipe: DiffusionPipeline, subject: Subject) -> ImageLoss:
        """Return the loss of an image."""
        similarity = text_similarity(text_attention(pipe, subject.prompt), subject.end, self.power)
        there: dict[torch.device, Tensor] = {}  # where the maps turn out to be, once

        def loss(look: Look) -> Float[Tensor, ""]:
            device = look.maps.device
            there.setdefault(device, similarity if similarity.device == device else similarity.to(device))
            return t_sam_loss(look.maps, there[device])

        return loss
