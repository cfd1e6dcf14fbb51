"""The edit of attention regulation while images are made: one optimisation per layer and step, and its memory.

Conventions: scores lie tokens first, "batch head token pixel"; what the solver takes is "target row pixel", see
`regulate.softmax`. What a layer needs on the device is put there at its first pass; afterwards nothing is copied to or
from the host, and nothing waits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit

from regulate.dominance import Watch, log_ratio
from regulate.kernels import gaussian_kernels
from regulate.method import Subject
from regulate.objective import Solution, bias_of, distance, optimum
from regulate.shares import begun
from regulate.softmax import Members, biased, members_of, reduced
from tracer.passes import Passes
from tracer.tap import Edited, Tap

if TYPE_CHECKING:
    from regulate.attention_regulation import AttentionRegulation


@dataclass
class _Layer:
    """What one site needs on its device, and what it remembers."""

    members: Members
    words: Members | None  # whole words, to see which of them dominates
    weights: Float[Tensor, "target row 1"]
    kernels: Float[Tensor, "kernel pixel"]
    ends: Bool[Tensor, "batch 1 token 1"]
    starts: Float[Tensor, "step target row kernel"]
    memory: Tensor | None = None


class Regulator:
    """The edit of one batch of images."""

    def __init__(
        self,
        method: "AttentionRegulation",
        subjects: tuple[Subject, ...],
        passes: Passes,
        sites: Mapping[str, int],
    ):
        """Regulate these subjects; `sites` are the numbers of those that are edited among all of the model."""
        self.method, self.subjects, self.passes, self.sites = method, subjects, passes, dict(sites)
        self.layers: dict[str, _Layer] = {}
        self.watch = Watch(method.ratio)
        self._optimum = compiled_optimum() if method.compiled else optimum

    @property
    def watched(self) -> int:
        """How many steps are watched before the first that is edited."""
        return max(1, begun(self.method.watch, self.passes.steps)) if self.method.when == "dominant" else 0

    @property
    def end(self) -> int:
        """The first step that is no longer edited."""
        return begun(self.method.until, self.passes.steps)

    def __call__(self, tap: Tap) -> Edited | None:
        """Return the regulated probabilities of the conditional rows, or None where nothing is edited."""
        step, method = self.passes.step, self.method
        if self.passes.kind != "sample" or step >= self.end:
            return None
        if self.watched >= self.end:
            raise ValueError(
                f"of {self.passes.steps} steps {self.watched} are watched and {self.end} edited: none is left"
            )
        scores = tap.scores(self.passes.rows).transpose(-1, -2)
        layer = self._layer(tap, scores)
        if step < self.watched and layer.words is not None:
            words = reduced(scores, layer.words).probs()[:-1]
            self.watch.see(log_ratio(words, layer.words.real[..., 0]))
            return None
        solution = self._optimum(scores, layer.members, layer.kernels, layer.weights, layer.starts[step], method)
        maps = self._remembered(tap, layer, scores, bias_of(solution.theta, layer.kernels))
        maps = self._kept(tap, layer, maps)
        found = _Found(self.method, scores, layer, solution)
        return Edited(self.passes.rows, maps.transpose(-1, -2), found)

    def _remembered(
        self, tap: Tap, layer: _Layer, scores: Tensor, optimum: Float[Tensor, "target row pixel"]
    ) -> Float[Tensor, "batch head token pixel"]:
        """Return the edited maps: the optimum averaged with what is remembered (eq. 14), and decayed (eq. 15)."""
        method, step = self.method, self.passes.step
        of_maps = method.average_of == "maps"
        now = biased(scores, optimum, layer.members) if of_maps else optimum
        before = layer.memory
        if before is None:
            before = now if of_maps or method.average == "running" else bias_of(layer.starts[step], layer.kernels)
        mixed = method.memory * before + (1 - method.memory) * now
        layer.memory = mixed if method.average == "running" else now
        fade = method.decay**step
        if of_maps:
            return torch.lerp(tap.maps(self.passes.rows), mixed, fade)
        return biased(scores, fade * mixed, layer.members)

    def _kept(
        self, tap: Tap, layer: _Layer, edited: Float[Tensor, "batch head token pixel"]
    ) -> Float[Tensor, "batch head token pixel"]:
        """Put back the attention that is not to be edited: of the ends, and of images without dominance."""
        if self.method.ends_kept:
            edited = torch.where(layer.ends, tap.maps(self.passes.rows), edited)
        if self.method.when == "dominant":
            edited = torch.where(self.watch.dominant()[:, None, None, None], edited, tap.maps(self.passes.rows))
        return edited

    def _layer(self, tap: Tap, scores: Float[Tensor, "batch head token pixel"]) -> _Layer:
        """Return what the site needs, made at its first pass of a generation."""
        if self.passes.step == 0:
            self.layers.pop(tap.site, None)
            if tap.site == next(iter(self.sites)):
                self.watch = Watch(self.method.ratio)
        if tap.site not in self.layers:
            self.layers[tap.site] = self._made(tap, scores)
        return self.layers[tap.site]

    def _made(self, tap: Tap, scores: Float[Tensor, "batch head token pixel"]) -> _Layer:
        images, heads, tokens, _ = scores.shape
        if images != len(self.subjects):
            raise ValueError(f"the batch holds {images} prompted images, the method was given {len(self.subjects)}")
        words = [[list(target.positions) for target in subject.targets] for subject in self.subjects]
        if self.method.pieces == "separate":
            pieces = [[[position] for position in sorted({p for word in one for p in word})] for one in words]
            members = members_of(pieces, tokens, scores.device)
        else:
            members = members_of(words, tokens, scores.device)
        of_words = members_of(words, tokens, scores.device) if self.method.when == "dominant" else None
        kernels = gaussian_kernels(tap.height, tap.width, self.method.grid)
        ends = torch.zeros(images, 1, tokens, 1, dtype=torch.bool)
        for image, subject in enumerate(self.subjects):
            ends[image, 0, [0, subject.end]] = True
        starts = self._starts(tap.site, members.count.tolist(), heads, len(kernels)).to(scores.device)
        kernels = (kernels * tap.scale if self.method.before_scaling else kernels).to(scores.device)
        return _Layer(members, of_words, members.weights(heads), kernels, ends.to(scores.device), starts)

    def _starts(
        self, site: str, targets: list[int], heads: int, kernels: int
    ) -> Float[Tensor, "step target row kernel"]:
        """Return where each edited step's descent starts; an image's draw does not depend on its batch."""
        steps = self.end
        starts = torch.zeros(steps, max(targets), len(targets), heads, kernels)
        if self.method.start == "uniform":
            for image, (subject, own) in enumerate(zip(self.subjects, targets, strict=True)):
                for step in range(steps):
                    seed = (subject.seed * 1_000_003 + self.sites[site]) * 1_009 + step
                    chance = torch.Generator().manual_seed(seed % 2**63)
                    starts[step, :own, image] = torch.rand(heads, own, kernels, generator=chance).transpose(0, 1)
        return starts.flatten(2, 3)


@dataclass(frozen=True)
class _Found:
    """What an optimisation did, for whoever asks: numbers of each image and head, still on the device."""

    method: "AttentionRegulation"
    scores: Tensor
    layer: _Layer
    solution: Solution

    def __call__(self) -> dict[str, Float[Tensor, "image head"]]:
        """Return the columns of `tracer.solves`; the distance is that of the optimum itself."""
        layer, terms, images = self.layer, self.solution.terms, len(self.scores)
        parts = reduced(self.scores, layer.members, spread=True)
        columns = {
            "loss_start": terms.loss[0],
            "loss_kept": terms.loss[1],
            "coverage": terms.coverage[1],
            "proportion": terms.proportion[1],
            "deviation": terms.size[1] + terms.deviation[1],
            "distance": distance(parts, bias_of(self.solution.theta, layer.kernels)),
        }
        found = {name: column.unflatten(0, (images, -1)) for name, column in columns.items()}
        return found | {"kept": self.solution.kept[:, None].expand_as(found["distance"])}


@cache
def compiled_optimum() -> Callable[..., Solution]:
    """Return `objective.optimum` compiled, once per process; for shapes and constants beyond torch's limit, eager."""
    compiled = torch.compile(optimum, fullgraph=True, dynamic=False)

    def either(*given: Any) -> Solution:
        try:
            return compiled(*given)
        except FailOnRecompileLimitHit:
            return optimum(*given)

    return either
