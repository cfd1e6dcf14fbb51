"""Which text a pipeline's network sees: its encoders, and the sequence that they make of a prompt.

Conventions: SD 1.x, 2.x and SDXL give the network one CLIP sequence; SD3 CLIP's and after it T5's, with one number
for a word that both hold; Flux T5's alone. How long T5's part is, a call decides (``max_sequence_length``), so the
length comes from the network's own input.
"""

from collections.abc import Sequence
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.loaders import TextualInversionLoaderMixin

from tracer.sites import denoiser
from tracer.words import Encoder, Span, Target, Token, sequence_of, targets_of


class Texts:
    """A pipeline's texts of one length."""

    def __init__(self, pipe: DiffusionPipeline, length: int):
        """Find the encoders of a network that sees `length` tokens."""
        self.pipe, self.length = pipe, length
        self.encoders, self.blank = _encoders(pipe, length)
        if sum(encoder.limit for encoder in self.encoders) + self.blank != length:
            parts = " + ".join(str(encoder.limit) for encoder in self.encoders)
            raise ValueError(
                f"the network is given a text of {length} tokens, but the tokenizer makes {parts}; "
                "only prompts of the tokenizer's own length can be traced, no longer embeddings"
            )

    def tokens(self, prompt: str) -> tuple[Token, ...]:
        """Return the whole sequence of a prompt, padding included.

        Raises:
            ValueError: the prompt is longer than that.
        """
        tokens = sequence_of(self.encoders, self._converted(prompt))
        start = len(tokens)
        return tokens + tuple(Token(start + i, None, "", "pad", None, None) for i in range(self.blank))

    def targets(self, prompt: str, targets: Sequence[str | Span]) -> tuple[Target, ...]:
        """Return target words with their positions in the sequence.

        Raises:
            ValueError: a target is not in the prompt, two are the same, or the prompt is too long.
        """
        return targets_of(self.encoders, self._converted(prompt), targets)

    def _converted(self, prompt: str) -> str:
        """Return the prompt as the pipeline tokenizes it: learned words of several vectors are written out."""
        if isinstance(self.pipe, TextualInversionLoaderMixin) and len(self.encoders) == 1:
            tokenizer: Any = self.encoders[0].tokenizer
            return str(self.pipe.maybe_convert_prompt(prompt, tokenizer))
        return prompt


def _encoders(pipe: DiffusionPipeline, length: int) -> tuple[list[Encoder], int]:
    """Return the encoders in order, and how many tokens of nothing follow them."""
    model = type(denoiser(pipe)).__name__
    if model == "FluxTransformer2DModel":
        return [Encoder(pipe.tokenizer_2, length, "t5")], 0
    if model == "SD3Transformer2DModel":
        clip = Encoder(pipe.tokenizer, name="clip")
        rest = length - clip.limit
        if pipe.tokenizer_3 is None or pipe.text_encoder_3 is None:  # the pipeline puts zeros in T5's place
            return [clip], rest
        return [Encoder(pipe.tokenizer, name="clip", cut=True), Encoder(pipe.tokenizer_3, rest, "t5")], 0
    return [Encoder(getattr(pipe, "tokenizer", None) or pipe.tokenizer_2)], 0
