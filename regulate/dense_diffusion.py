"""DenseDiffusion: attention is drawn to the segments of a layout, without any gradient.

Source: Kim et al., "Dense Text-to-Image Generation with Attention Modulation", arXiv 2308.12964, eq. 4 to 7, and its
code (Apache 2.0), commit 54a2ea6.

In every text- and self-attention, of the prompts' rows alone, a pixel's scores are raised towards their largest where
token (pixel) and pixel share a segment, and lowered towards their smallest elsewhere:

    scores + R s w tau (max - scores) - (1 - R) s w tau (scores - min),    tau = (t / 1000)^5

where s is smaller for larger segments. Words outside of all phrases, start, end and padding share a segment with no
pixel. The embedding of a phrase within the prompt is replaced by that of the phrase alone. The released code counts
passes in a global, for one square image at a time; it looks for a phrase's first place only, and gives a token to the
last segment that asks for it, so that of two equal phrases the first one's segment is left without words.

The edits act in passes of guidance too, so that a loss sees the text attention that the image will be made with; of
self-attention it sees what the model would have done.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool, Float
from torch import Tensor

from regulate.layout import Layout, placed, resized
from regulate.method import ACTS, AttentionEdit, Kind, Method, Standing, Subject, TextEdit
from regulate.shares import whole
from tracer.passes import Passes
from tracer.sites import attention_sites, self_attention_sites
from tracer.tap import Edited, Replaced, Tap
from tracer.words import places_of, positions_of

CHUNK = 2**24  # scores of self-attention computed at a time, 64 MB


@dataclass(frozen=True)
class DenseDiffusion(Method):
    """The method's hyper-parameters; each default is the released code's.

    Attributes:
        until: share of the steps that are edited: 15 of 50.
        text: w of text attention.
        own: w of self-attention.
        size: how much less the pixels of large segments are edited, between 0 and 1.
        power: of the time factor.
        phrases_alone: whether phrases have the embeddings that they have alone.
        repeats: where a phrase stands that the prompt has twice: "first", its first place, which the last segment of
            that name has for itself, as released; or "own", each its own, and a token that two phrases share is both's.
    """

    name: ClassVar[str] = "dense-diffusion"
    kinds: ClassVar[tuple[Kind, ...]] = ("attention edit",)
    edits_guidance: ClassVar[bool] = True
    until: float = 0.3
    text: float = 1.0
    own: float = 0.3
    size: float = 1.0
    power: float = 5.0
    phrases_alone: bool = True
    repeats: str = "first"

    def __post_init__(self) -> None:
        if self.repeats not in ("first", "own"):
            raise ValueError(f"repeats must be 'first' or 'own', got {self.repeats!r}")
        if not 0 <= self.until <= 1 or not 0 <= self.size <= 1:
            raise ValueError(f"until and size must be between 0 and 1, got {self.until}, {self.size}")

    def standing(self, subject: Subject) -> Standing:
        """Return "n/a" for a prompt without a layout."""
        return ACTS if subject.given.layout is not None else Standing("n/a", "it has no layout")

    def interventions(
        self, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes
    ) -> tuple[AttentionEdit | TextEdit, ...]:
        """Return the edits of one batch.

        Raises:
            ValueError: a segment's phrase is not in its prompt.
        """
        segments = tuple(_Segments.of(self, pipe, subject) for subject in subjects)
        edit = _Modulation(self, pipe, segments, passes)
        edits = (
            AttentionEdit(attention_sites(pipe.unet), edit.of_text),
            AttentionEdit(self_attention_sites(pipe.unet), edit.of_own),
        )
        return (*edits, TextEdit(_Phrases(pipe, segments, passes))) if self.phrases_alone else edits


FIXED = DenseDiffusion(repeats="own")


def modulated(
    scores: Float[Tensor, "*batch pixel key"],
    shared: Bool[Tensor, "*batch pixel key"],
    strength: Float[Tensor, "*batch pixel 1"],
) -> Float[Tensor, "*batch pixel key"]:
    """Return scores drawn to the largest of their pixel where `shared`, to the smallest elsewhere.

    Source: arXiv 2308.12964, eq. 4 and 5.

    Args:
        scores: before the softmax.
        shared: R, whether pixel and key are of one segment.
        strength: s w tau of each pixel.
    """
    raised = strength * (scores.amax(-1, keepdim=True) - scores)
    lowered = strength * (scores - scores.amin(-1, keepdim=True))
    return scores + torch.where(shared, raised, -lowered)


@dataclass(frozen=True)
class _Segments:
    """One image's layout, and where its phrases stand."""

    layout: Layout
    positions: tuple[tuple[int, ...], ...]
    prompt: str

    @classmethod
    def of(cls, method: DenseDiffusion, pipe: DiffusionPipeline, subject: Subject) -> "_Segments":
        layout = subject.given.layout
        if layout is None:
            raise ValueError(f"DenseDiffusion needs a layout, and {subject.prompt!r} has none")
        if method.repeats == "own":
            return cls(layout, placed(pipe.tokenizer, subject.prompt, layout), subject.prompt)
        found = [positions_of(pipe.tokenizer, subject.prompt, phrase) if phrase else () for phrase in layout.phrases]
        return cls(layout, tuple(found), subject.prompt)


def _text_of(phrase: str, prompt: str) -> str:
    """Return a phrase without the number of its place, "cat" of "cat#2", unless the prompt has the "#2" itself."""
    return phrase if places_of(prompt, phrase) else phrase.rpartition("#")[0]


@dataclass
class _Modulation:
    """The edits of one batch; masks of each size are put on the device once."""

    method: DenseDiffusion
    pipe: DiffusionPipeline
    segments: tuple[_Segments, ...]
    passes: Passes
    masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    shares: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None

    @property
    def tau(self) -> float:
        """The time factor, (t / 1000)^5; 0 where nothing is edited any more."""
        if self.passes.step >= whole(self.method.until, self.passes.steps):
            return 0.0
        return (self.passes.timestep / self.pipe.scheduler.config.num_train_timesteps) ** self.method.power

    def of_text(self, tap: Tap) -> Edited | None:
        """Return the edited probabilities of a text attention."""
        tau = self.tau
        if not tau:
            return None
        masks, share = self._masks(tap)
        scores = tap.scores(self.passes.rows)
        if self.tokens is None or self.tokens.shape[-1] != scores.shape[-1]:
            self.tokens = self._tokens(scores.shape[-1]).to(scores.device)
        shared = (masks.transpose(-1, -2) @ self.tokens)[:, None] > 0
        strength = (tau * self.method.text * (1 - self.method.size * share))[:, None]
        return Edited(
            self.passes.rows,
            modulated(scores, shared.expand_as(scores), strength.expand(-1, scores.shape[1], -1, -1)).softmax(-1),
        )

    def of_own(self, tap: Tap) -> Replaced | None:
        """Return the edited result of a self-attention, some pixels at a time."""
        tau = self.tau
        if not tau:
            return None
        masks, share = self._masks(tap)
        query, key, value = (part[self.passes.rows].float() for part in (tap.query, tap.key, tap.value))
        strength = (tau * self.method.own * (1 - self.method.size * share))[:, None].expand(-1, key.shape[1], -1, -1)
        step = max(1, CHUNK // (key.shape[0] * key.shape[1] * key.shape[2]))
        parts = []
        for start in range(0, query.shape[2], step):
            pixels = slice(start, start + step)
            scores = query[:, :, pixels] @ key.transpose(-1, -2) * tap.scale
            shared = (masks[:, :, pixels].transpose(-1, -2) @ masks)[:, None] > 0
            scores = modulated(scores, shared.expand_as(scores), strength[:, :, pixels])
            parts.append(scores.softmax(-1) @ value)
        return Replaced(self.passes.rows, torch.cat(parts, 2))

    def _masks(self, tap: Tap) -> tuple[Float[Tensor, "image segment pixel"], Float[Tensor, "image pixel 1"]]:
        """Return the segments' masks at a map's size, and how large a share of the map each pixel's segment is."""
        size = tap.height, tap.width
        images = len(tap.query[self.passes.rows])
        if images != len(self.segments):
            raise ValueError(f"the batch holds {images} prompted images, the method was given {len(self.segments)}")
        if size not in self.masks:
            most = max(len(one.positions) for one in self.segments)
            masks = torch.zeros(images, most, size[0] * size[1])
            for image, one in enumerate(self.segments):
                masks[image, : len(one.positions)] = resized(one.layout, *size).flatten(1).float()
            own = masks.transpose(-1, -2) @ masks.mean(-1, keepdim=True)
            self.masks[size], self.shares[size] = masks.to(tap.query.device), own.to(tap.query.device)
        return self.masks[size], self.shares[size]

    def _tokens(self, count: int) -> Float[Tensor, "image segment token"]:
        """Return which tokens each segment's phrase has."""
        most = max(len(one.positions) for one in self.segments)
        tokens = torch.zeros(len(self.segments), most, count)
        for image, one in enumerate(self.segments):
            for segment, positions in enumerate(one.positions):
                if self.method.repeats == "first":  # the released code writes over what it wrote
                    tokens[image, :, list(positions)] = 0
                tokens[image, segment, list(positions)] = 1
        return tokens


class _Phrases:
    """The embeddings that a batch's phrases have alone, in their places in the prompts."""

    def __init__(self, pipe: DiffusionPipeline, segments: tuple[_Segments, ...], passes: Passes):
        self.pipe, self.segments, self.passes = pipe, segments, passes
        self.alone = self.there = torch.empty(0)

    def __call__(self, text: Float[Tensor, "image token channel"]) -> Float[Tensor, "image token channel"]:
        """Return the prompts' embeddings with the phrases' own in them."""
        if self.alone.shape != text.shape:
            self.alone, self.there = self._encoded_phrases(text)
        return torch.where(self.there, self.alone, text)

    @torch.no_grad()
    def _encoded_phrases(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings in their places, and where those are."""
        alone, there = torch.zeros_like(text), torch.zeros((*text.shape[:2], 1), dtype=torch.bool)
        for image, one in enumerate(self.segments):
            for phrase, positions in zip(one.layout.phrases, one.positions, strict=True):
                if positions:
                    embedding = self._encoded(_text_of(phrase, one.prompt), text.device)
                    alone[image, list(positions)] = embedding[1 : 1 + len(positions)].to(text.dtype)
                    there[image, list(positions)] = True
        return alone, there.to(text.device)

    def _encoded(self, phrase: str, device: torch.device) -> Float[Tensor, "token channel"]:
        encode: Callable[..., tuple[Tensor, ...]] = self.pipe.encode_prompt
        return encode(
            prompt=phrase,
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=getattr(self.pipe, "clip_skip", None),
        )[0][0]
