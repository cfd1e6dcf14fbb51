"""Run the authors' own solver of attention regulation on random scores, and keep its numbers.

Usage: python tests/golden/make_regulation.py AUTHORS_FOLDER, a checkout of github.com/YaNgZhAnG-V5/attention_regulation
at COMMIT. Nothing of theirs is copied: their module is imported from that folder, and numbers are written beside this
file. README.md says what is changed in how their module sees torch.

Conventions: the arithmetic is float64; what is written is float32, but for the losses. Scores are scaled and before the
softmax, "head pixel token"; theta is "head target kernel", kernels in our order; S is "head target pixel".
"""

import hashlib
import importlib.util
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

COMMIT = "b66d9db44987ec45afa93304c9da6db1fdc79d8c"
MODULE_SHA256 = "fcbaa236e1a85c1c1f6ed1a5c07256499fafc3b74956706b3d6fb9036237b53d"
FILE = Path(__file__).with_name("regulation.safetensors")
COMMAND = "python tests/golden/make_regulation.py AUTHORS_FOLDER"
STEPS = 3
START = 6.0  # added to token 0: a start token takes most of the attention


@dataclass(frozen=True)
class Setup:
    """One case: a square map, and which tokens are raised."""

    width: int
    heads: int
    tokens: int
    positions: tuple[int, ...]
    end: int
    seed: int

    @property
    def centres(self) -> int:
        """Centres of Gaussians on each axis."""
        sigma = self.width // 16
        return len(range(2 * sigma, self.width, 2 * sigma))


SETUPS = {
    "one-target": Setup(width=16, heads=2, tokens=20, positions=(3,), end=7, seed=1),
    "two-targets": Setup(width=16, heads=2, tokens=20, positions=(2, 5), end=8, seed=2),
    "three-targets": Setup(width=16, heads=2, tokens=20, positions=(2, 5, 9), end=12, seed=3),
    "24x24": Setup(width=24, heads=1, tokens=12, positions=(2, 4), end=6, seed=4),
}


class Torch:
    """What the authors' module sees as `torch`: torch, but for what README.md lists."""

    autograd = SimpleNamespace(grad=torch.autograd.grad, set_detect_anomaly=lambda mode: None)

    def __init__(self, drawn: Tensor, precision: torch.dtype):
        self.drawn = drawn
        self.float16 = self.float32 = precision

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def rand(self, size: tuple[int, ...], dtype: torch.dtype, device: torch.device, requires_grad: bool) -> Tensor:
        """Return the initial weights that were chosen beforehand."""
        if tuple(size) != tuple(self.drawn.shape):
            raise ValueError(
                f"the weights must have the shape that the module asks for, {size}, got {self.drawn.shape}"
            )
        return self.drawn.to(device, dtype, copy=True).requires_grad_(requires_grad)


def authors_module(folder: Path) -> ModuleType:
    """Return the authors' attn_processor, freshly imported from their folder."""
    path = folder / "attention_regulation" / "attn_processor.py"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != MODULE_SHA256:
        raise ValueError(f"the folder must be a checkout of the authors' repository at {COMMIT}, got {folder}")
    spec = importlib.util.spec_from_file_location("authors_attn_processor", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def their_weights(theta: Tensor) -> Tensor:
    """Return theta "head target row column" as the authors order it, (heads, centres, targets), columns outermost."""
    return theta.permute(0, 3, 2, 1).flatten(1, 2)


def one_step(module: ModuleType, setup: Setup, scores: Tensor, theta: Tensor, internals: dict, step: int) -> dict:
    """Return losses, S and edited probabilities of one step, in the precision of `scores`; internals is theirs."""
    module.torch = Torch(their_weights(theta), scores.dtype)  # type: ignore[attr-defined]
    processor, losses = module.AttnProcessorAttnMapEdit(), []
    their_loss = processor.loss_fn

    def noted(*args: Any, **options: Any) -> Tensor:
        losses.append(their_loss(*args, **options))
        return losses[-1]

    processor.loss_fn = noted
    maps = scores.unflatten(1, (setup.width, setup.width))
    batch = torch.cat([maps.flip(0) - 1, maps])  # the unconditional half comes first and is left alone
    returned = processor._optimise_attention_maps(
        batch.clone(), maps.clone(), [list(setup.positions)], internals, step
    ).detach()
    if not torch.equal(returned[: setup.heads], batch[: setup.heads]):
        raise ValueError("the authors' code changed the unconditional half")
    before, after = scores.softmax(-1), returned[setup.heads :].flatten(1, 2).softmax(-1)
    kept = [0, setup.end]
    after[..., kept] = before[..., kept]
    bias = internals["ma_attn"][-1].movedim(-1, 1).flatten(2)
    return {"losses": torch.stack(losses).detach(), "bias": bias, "probs": after}


def one_case(module: ModuleType, setup: Setup) -> dict[str, Tensor]:
    """Return the numbers of all steps of one case, new scores and new initial weights at each, under "step/what"."""
    chance, kept = torch.Generator().manual_seed(setup.seed), {}
    internals, internals_float32 = {}, {}
    for step in range(STEPS):
        scores = 2 * torch.randn(setup.heads, setup.width**2, setup.tokens, generator=chance)
        scores[..., 0] += START
        theta = torch.rand(setup.heads, len(setup.positions), setup.centres, setup.centres, generator=chance)
        exact = one_step(module, setup, scores.double(), theta, internals, step)
        plain = one_step(module, setup, scores, theta, internals_float32, step)
        written = {
            "scores": scores, "theta": theta.flatten(2), "losses": exact["losses"],
            "losses_float32": plain["losses"], "bias": exact["bias"].float(), "probs": exact["probs"].float(),
        }  # fmt: skip
        kept |= {f"{step}/{what}": numbers.contiguous() for what, numbers in written.items()}
    return kept


def main(folder: Path) -> None:
    """Write the file."""
    torch.set_num_threads(1)  # sums in one order
    module, tensors, cases = authors_module(folder), {}, {}
    for name, setup in SETUPS.items():
        tensors |= {f"{name}/{key}": numbers for key, numbers in one_case(module, setup).items()}
        cases[name] = {"height": setup.width} | asdict(setup)
    about = {"commit": COMMIT, "torch": torch.__version__, "command": COMMAND, "steps": STEPS, "cases": cases}
    save_file(tensors, FILE, {"about": json.dumps(about)})  # of several keys the order, and so the bytes, would vary
    FILE.chmod(0o644)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
