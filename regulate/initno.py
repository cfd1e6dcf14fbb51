"""InitNO: an initial noise that the model attends from to every target, each in a place of its own.

Source: Guo et al., "InitNO: Boosting Text-to-Image Diffusion Models via Initial Noise Optimization", CVPR 2024, and its
code (Apache 2.0), commit fa021c4. It is a stage before the first step, which any method can follow.

The noise is exp(v / 2) n + m; v and m, 0 at the start, are moved by Adam against the cross- and self-attention losses
at the first timestep, and back while the noise is too far from a Gaussian one. Noise that reaches both thresholds is
taken; after some rounds of new noise without success, the best one is moved longer.

Conventions: images are optimised side by side, each as if alone; one that has succeeded rests. Of the released code's
losses the two of the paper are here; it adds one that clears a map around its peak, with a mask by Otsu's threshold,
and after the noise it guides the latents by these losses. That guidance is not here: ``combined(InitNO(),
METHODS["attend-and-excite-fixed"])`` is what comes nearest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool, Float
from torch import Tensor

from regulate.attend_and_excite import attend_and_excite_loss
from regulate.layers import LAST_DOWN_SIZE, sites_of_one_size
from regulate.looking import Looker, Maps, frozen
from regulate.loop import Moment
from regulate.method import Kind, LatentUpdate, Method, Subject
from regulate.smoothing import smoothed, words_only
from tracer.passes import Passes
from tracer.sites import attention_sites, self_attention_sites

Word = tuple[int, ...]


@dataclass(frozen=True)
class InitNO(Method):
    """The method's hyper-parameters; each default is the released code's.

    Attributes:
        layers: whose maps the losses see, as for latent guidance.
        cross: threshold of the cross-attention loss.
        own: threshold of the self-attention loss.
        divergence: of the noise from a Gaussian one (Kullback-Leibler, per element), at most.
        rate: Adam's step.
        rounds: how many noises are tried.
        moves: of each.
        last_moves: of the best one, if none succeeded.
        conflict_below: the self-attention loss counts where the cross-attention loss is at most this.
        until_end: the softmax over the tokens ends before the end token, instead of before the last of the padding, as
            it should in Stable Diffusion 2.x, whose attention goes there.
    """

    name: ClassVar[str] = "initno"
    kinds: ClassVar[tuple[Kind, ...]] = ("initial noise",)
    needs_targets: ClassVar[bool] = True
    layers: str | tuple[str, ...] = LAST_DOWN_SIZE
    cross: float = 0.2
    own: float = 0.3
    divergence: float = 1e-3
    rate: float = 1e-2
    rounds: int = 5
    moves: int = 10
    last_moves: int = 50
    conflict_below: float = 0.5
    until_end: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.moves < 1 or self.last_moves < 0:
            raise ValueError(
                "rounds and moves must be at least 1, last_moves at least 0, "
                f"got {self.rounds}, {self.moves}, {self.last_moves}"
            )

    def check(self, subjects: tuple[Subject, ...]) -> None:
        """Raise ValueError if an image has no target."""
        if not all(subject.targets for subject in subjects):
            raise ValueError("InitNO needs at least one target for every prompt")

    def gradient_passes(self, steps: int, images: int = 1) -> tuple[int, int]:
        """Return how many passes a batch takes at least, if its first noise will do, and at most."""
        return 1, self.rounds * self.moves + self.last_moves

    def interventions(
        self, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes
    ) -> tuple[LatentUpdate, ...]:
        """Return the search for the noise of one batch."""
        sites = sites_of_one_size(pipe.unet, attention_sites(pipe.unet), self.layers)
        own = sites_of_one_size(pipe.unet, self_attention_sites(pipe.unet), self.layers)
        look = Looker(pipe, passes, sites, own)
        return (LatentUpdate("initial noise", _Search(self, pipe, subjects, look)),)


def conflict_loss(
    text: Float[Tensor, "token height width"],
    own: Float[Tensor, "pixel key"],
    words: Sequence[Word],
    end: int | None = None,
) -> Float[Tensor, ""]:
    """Return how much the regions of two targets overlap, the mean over all pairs; between 0 and 0.5, 0 for one target.

    A target's region is what the pixel attends to at which attention to the target is largest. Two regions A and B
    overlap by sum min(A, B) / sum (A + B).

    Source: InitNO, eq. 4, its self-attention conflict loss.

    Args:
        text: attention to each token.
        own: each pixel's attention to all pixels.
        words: positions of each target's pieces, whose most attended pixel counts.
        end: position of the end token, if the softmax ends before it.
    """
    shares = smoothed(words_only(text, end=end))
    height, width = text.shape[1:]
    regions = []
    for word in words:
        flat = torch.stack([shares[position - 1] for position in word]).amax(0).flatten()
        peak = torch.nn.functional.one_hot(flat.detach().argmax(), height * width).to(own.dtype)
        regions.append(smoothed((peak @ own).reshape(height, width)))
    pairs = list(combinations(regions, 2))
    if not pairs:
        return text.sum() * 0
    overlaps = [torch.minimum(one, other).sum() / ((one + other).sum() + 1e-6) for one, other in pairs]
    return torch.stack(overlaps).mean()


def noise_divergence(
    mean: Float[Tensor, "image channel height width"], log_var: Float[Tensor, "image channel height width"]
) -> Float[Tensor, " image"]:
    """Return each image's divergence of N(mean, exp(log_var)) from N(0, 1) (Kullback-Leibler), mean over elements."""
    return (0.5 * (mean.square() + log_var.exp() - 1 - log_var)).flatten(1).mean(1)


class _Adam:
    """Adam on each image by itself; those that rest keep their state."""

    def __init__(self, like: Tensor, rate: float, eps: float = 1e-3):
        self.rate, self.eps = rate, eps
        self.first, self.second = torch.zeros_like(like), torch.zeros_like(like)
        self.count = torch.zeros(len(like), 1, 1, 1, device=like.device)

    def step(self, slope: Tensor, active: Bool[Tensor, " image"]) -> Tensor:
        """Return what to add, 0 for images that rest."""
        moving = active[:, None, None, None]
        self.count = self.count + moving
        self.first = torch.where(moving, 0.9 * self.first + 0.1 * slope, self.first)
        self.second = torch.where(moving, 0.999 * self.second + 0.001 * slope.square(), self.second)
        count = self.count.clamp(min=1)
        first, second = self.first / (1 - 0.9**count), self.second / (1 - 0.999**count)
        return torch.where(moving, -self.rate * first / (second.sqrt() + self.eps), 0.0)


FIXED = InitNO(until_end=True)


@dataclass
class _Noise:
    """What one optimisation of every image's noise found."""

    noise: Float[Tensor, "image channel height width"]
    done: Bool[Tensor, " image"]
    score: Float[Tensor, " image"]


class _Search:
    """The search for the noise of one batch, before its first step."""

    def __init__(self, method: InitNO, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], look: Looker):
        self.method, self.pipe, self.subjects, self.look = method, pipe, subjects, look
        self.words = [[target.positions for target in subject.targets] for subject in subjects]
        self.ends = [subject.end if method.until_end else None for subject in subjects]

    def __call__(self, moment: Moment) -> Tensor | None:
        """Return the latents to begin with; None after the first step."""
        if moment.step:
            return None
        if len(moment.latents) != len(self.subjects):
            raise ValueError(
                f"the pipeline was called for {len(moment.latents)} images, the block for {len(self.subjects)}"
            )
        scale = float(self.pipe.scheduler.init_noise_sigma)
        noise = moment.latents.float() / scale
        with frozen(self.pipe.unet):
            return self._searched(moment, noise, scale) * scale

    def _searched(self, moment: Moment, noise: Tensor, scale: float) -> Tensor:
        """Return each image's first noise that succeeds, else the best one after more moves."""
        method, start = self.method, noise
        waiting = torch.ones(len(noise), dtype=torch.bool, device=noise.device)
        best: _Noise | None = None
        for round_ in range(method.rounds):
            if round_:
                start = torch.where(waiting[:, None, None, None], self._new(noise, round_), start)
            found = self._optimised(moment, start, waiting, method.moves, scale)
            if best is None:
                best, begun = found, start.clone()
            else:
                better = (waiting & (found.done | (found.score < best.score)))[:, None, None, None]
                begun = torch.where(better, start, begun)
                best.noise = torch.where(better, found.noise, best.noise)
                best.score = torch.where(better.flatten(), found.score, best.score)
            best.done = best.done | (found.done & waiting)
            waiting = ~best.done
            if not waiting.any():
                return best.noise
        assert best is not None
        if not method.last_moves:
            return best.noise
        last = self._optimised(moment, begun, waiting, method.last_moves, scale)
        return torch.where(waiting[:, None, None, None], last.noise, best.noise)

    def _new(self, noise: Tensor, round_: int) -> Tensor:
        """Return other noise, of each image's own seed and the round."""
        drawn = []
        for subject in self.subjects:
            chance = torch.Generator("cpu").manual_seed(2**62 + (subject.seed * 1_000_003 + round_) % 2**62)
            drawn.append(torch.randn(noise.shape[1:], generator=chance))
        return torch.stack(drawn).to(noise.device)

    def _optimised(self, moment: Moment, noise: Tensor, wanted: Tensor, moves: int, scale: float) -> _Noise:
        """Return the noise after some moves of the images that are wanted; each stops when it succeeds."""
        method = self.method
        mean, log_var = torch.zeros_like(noise), torch.zeros_like(noise)
        adams = _Adam(mean, method.rate), _Adam(log_var, method.rate)
        done, score = torch.zeros_like(wanted), torch.full_like(wanted, torch.inf, dtype=torch.float32)
        for _ in range(moves):
            active = wanted & ~done
            if not active.any():
                break
            mean, log_var = mean.detach().requires_grad_(), log_var.detach().requires_grad_()
            cross, own = self._losses(moment, (noise * (0.5 * log_var).exp() + mean) * scale)
            counted = torch.where(cross > method.conflict_below, 0.0, own)
            # noise whose conflict was not counted ranks behind all that whose was, as in the released code
            score = torch.where(active, (cross + counted + (counted <= 1e-6)).detach(), score)
            done = done | (active & (cross < method.cross) & (own < method.own))
            slopes = torch.autograd.grad((cross + counted).sum(), (mean, log_var))
            moving = active & ~done
            with torch.no_grad():
                mean, log_var = (
                    part + adam.step(slope, moving)
                    for part, adam, slope in zip((mean, log_var), adams, slopes, strict=True)
                )
                mean, log_var = self._near_gaussian(mean, log_var, adams, moving)
        return _Noise((noise * (0.5 * log_var).exp() + mean).detach(), done, score)

    def _near_gaussian(
        self, mean: Tensor, log_var: Tensor, adams: tuple[_Adam, _Adam], moving: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return mean and variance moved back until their divergence is small enough."""
        for turn in range(1000):
            far = moving & (noise_divergence(mean, log_var) > self.method.divergence)
            if turn % 8 == 0 and not far.any():  # asked now and then: each time waits for the device
                break
            size = mean[0].numel()
            slopes = mean / size, 0.5 * (log_var.exp() - 1) / size
            mean, log_var = (
                part + adam.step(slope, far) for part, adam, slope in zip((mean, log_var), adams, slopes, strict=True)
            )
        return mean, log_var

    def _losses(self, moment: Moment, latents: Tensor) -> tuple[Float[Tensor, " image"], Float[Tensor, " image"]]:
        maps: Maps = self.look(moment, latents)
        cross, own = [], []
        with torch.autocast(latents.device.type, enabled=False):  # or products of the maps would be half precision
            for text, regions, words, end in zip(maps.text, maps.own, self.words, self.ends, strict=True):
                cross.append(attend_and_excite_loss(text, [(position,) for word in words for position in word], end))
                own.append(conflict_loss(text, regions, words, end))
        return torch.stack(cross), torch.stack(own)
