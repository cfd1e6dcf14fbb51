"""Attention regulation: raise every target word's attention by a smooth bias found by gradient descent.

Source: "Enhancing Semantic Fidelity in Text-to-Image Synthesis: Attention Regulation in Diffusion Models", arXiv
2403.06381, section 3.3, and its released inference code (MIT), commit b66d9db.

Three sets of constants: `AttentionRegulation()` is `published`, what the code does; `PAPER` what the paper prints, open
constants being ours; `FIXED` the published set with its faults mended.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from diffusers import DiffusionPipeline

from regulate.kernels import GRIDS
from regulate.layers import LAST_DOWN_FIRST_UP, chosen_sites
from regulate.method import AttentionEdit, Kind, Method, Subject
from regulate.objective import Objective
from regulate.regulator import Regulator
from tracer.passes import Passes
from tracer.sites import attention_sites


@dataclass(frozen=True)
class AttentionRegulation(Objective, Method):
    """The method's hyper-parameters beside those of the `Objective`; each default is the released code's.

    Attributes:
        layers: "last-down-first-up" (section 4.1), or patterns of site names (``"up_blocks.1.*"``).
        per_transformer: of a transformer of many layers (SDXL) how many are edited; see `layers.chosen_sites`.
        until: share of the steps that are edited, from the first (25 of 50).
        before_scaling: S is added to QK^T (eq. 10) instead of to the scaled scores.
        grid: where the kernels stand, see `kernels.gaussian_kernels`.
        start: theta at the start, "uniform" in [0, 1) from the image's seed, layer and step; or "zero".
        pieces: of a word of several tokens: "separate", each is a target of its own; "shared", they have one S.
        average: what eq. 14 averages with: the "previous" step's optimum (at step 0 the S that the descent starts
            from), or the "running" average (at step 0 the optimum itself).
        average_of: taken on the "bias" S, or on the "maps" A* as printed.
        memory: kappa, weight of what is remembered (eq. 14).
        decay: lambda, factor on the edit per step (eq. 15).
        ends_kept: the start and the first end token get back their unedited attention, so that a pixel's tokens no
            longer add up to one.
        when: "always"; or "dominant": the first steps are watched, and only images in which one target dominates are
            edited. Ours.
        watch: share of the steps that are watched, at least one; not edited.
        ratio: of the largest to the smallest share of the targets, above which an image is edited (`dominance`).
        compiled: the solver is compiled by torch, which takes a minute once and pays on graphics cards.
    """

    name: ClassVar[str] = "regulation"
    kinds: ClassVar[tuple[Kind, ...]] = ("attention edit",)
    needs_targets: ClassVar[bool] = True
    layers: str | tuple[str, ...] = LAST_DOWN_FIRST_UP
    per_transformer: int | None = 1
    until: float = 0.5
    before_scaling: bool = False
    grid: str = "inner"
    start: str = "uniform"
    pieces: str = "separate"
    average: str = "previous"
    average_of: str = "bias"
    memory: float = 0.25
    decay: float = 0.99
    ends_kept: bool = True
    when: str = "always"
    watch: float = 0.1
    ratio: float = 1.5
    compiled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = {
            "grid": GRIDS,
            "start": ("uniform", "zero"),
            "pieces": ("separate", "shared"),
            "average": ("previous", "running"),
            "average_of": ("bias", "maps"),
            "when": ("always", "dominant"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}")
        for name in ("until", "memory", "decay", "watch"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if self.when == "dominant" and not self.watch < self.until:
            raise ValueError(f"watch must be less than until, {self.until}, or nothing is edited, got {self.watch}")

    def check(self, subjects: Sequence[Subject]) -> None:
        """Refuse images that it cannot act on.

        Raises:
            ValueError: an image has no target, or, where words count, only one or two that share a token.
        """
        if not all(subject.targets for subject in subjects):
            raise ValueError("attention regulation needs at least one target for every prompt")
        if self.when == "dominant" and any(len(subject.targets) < 2 for subject in subjects):
            raise ValueError("to see which target dominates takes at least two for every prompt")
        if self.when == "dominant" or self.pieces == "shared":
            for subject in subjects:
                flat = [position for target in subject.targets for position in target.positions]
                if len(set(flat)) != len(flat):
                    names = ", ".join(repr(target.text) for target in subject.targets)
                    raise ValueError(f"targets must share no token, to be taken as wholes, got {names}")

    def interventions(
        self, pipe: DiffusionPipeline, subjects: tuple[Subject, ...], passes: Passes
    ) -> tuple[AttentionEdit, ...]:
        """Return the edit for one batch of images.

        Args:
            pipe: that makes them.
            subjects: what is known of each image, in order.
            passes: of the network, as the pipeline goes on.

        Raises:
            ValueError: no site fits `layers`.
        """
        sites = attention_sites(pipe.unet)
        chosen = chosen_sites(sites, self.layers, self.per_transformer)
        numbers = {site: sites.index(site) for site in chosen}
        return (AttentionEdit(chosen, Regulator(self, subjects, passes, numbers)),)

    def parameters(self) -> dict[str, object]:
        """Return the hyper-parameters; the released code does not know small maps, nor those that are not square."""
        return {**asdict(self), "small_or_oblong_maps": "sigma = max(1, min(height, width) // 16)"}


# The paper leaves alpha, mu, kappa, the start, the iterations and the step size open: alpha is the released weight at
# 16x16, mu and kappa are the released ones, and a step of 6400 on scores that are yet to be divided by 8 is one of 100.
PAPER = AttentionRegulation(
    before_scaling=True,
    proportion_of="sum",
    proportion=80 / 256**2,
    theta_weight=0.0,
    deviation=0.1,
    grid="whole",
    start="zero",
    step_size=6400.0,
    average="running",
    average_of="maps",
    ends_kept=False,
)
FIXED = AttentionRegulation(pieces="shared", average="running", ends_kept=False, small_steps=True)
# A control: the bias that the descent starts from, the same chance and all else as released, but no descent.
RANDOM = AttentionRegulation(iterations=1)
