import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from regulate import Request, generate
from tracer import load_pipeline
from tracer.folders import emoji_world

FOLDER = emoji_world() / "sd"
STOCK = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1])
pipe.set_progress_bar_config(disable=True)
image = pipe("a cat and a dog", num_inference_steps=2, generator=torch.Generator().manual_seed(1)).images[0]
assert image.size == (64, 64), image.size
assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float32
ours = {"tracer", "regulate", "metrics", "analysis"} & {name.split(".")[0] for name in sys.modules}
assert not ours, ours
print(image.resize((1, 1)).getpixel((0, 0)))
"""


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("emoji")


def test_stock_diffusers_loads_and_draws_in_a_process_without_our_packages(tmp_path: Path):
    command = [sys.executable, "-W", "ignore", "-c", STOCK, str(FOLDER)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(")


def test_the_generator_is_small_and_within_its_cost_budget(pipe):
    weights = sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors"))
    assert weights <= 15e6
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pipe.unet(torch.randn(1, 4, 16, 16), 10, torch.randn(1, 16, pipe.unet.config.cross_attention_dim))
    assert counter.get_total_flops() <= 0.5e9


def test_the_encoder_is_the_linear_patch_code(pipe):
    """Stock weights compute it: the code of a sum is the sum of the codes, up to the offset, and pixels are local."""
    chance = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 3, 64, 64, generator=chance) - 0.5
    with torch.no_grad():
        a, b, both, none = (pipe.vae.encode(p).latent_dist.mode() for p in (x, y, x + y, 0 * x))
        moved = x.clone()
        moved[..., :4, :4] += 0.3
        change = (pipe.vae.encode(moved).latent_dist.mode() - a).abs().amax(1)[0]
    torch.testing.assert_close(both - none, (a - none) + (b - none), atol=5e-3, rtol=0)
    assert change[0, 0] > 0.05
    assert change.flatten()[1:].max() < 5e-3


def test_what_it_draws_depends_on_the_prompt_and_repeats(pipe):
    cat, dog = (Request(f"a {noun}", (noun,), (5,), steps=4) for noun in ("cat", "dog"))
    first = generate(pipe, cat)
    assert generate(pipe, cat).sha256 == first.sha256
    assert generate(pipe, dog).sha256 != first.sha256


def test_the_card_says_what_was_measured_and_how():
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["detector"].startswith("emoji:")
    assert all(0 <= group["all_found"] <= 1 and group["images"] > 0 for group in card["measured"].values())


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"is no diffusers pipeline: it has no model_index\.json"):
        load_pipeline(str(tmp_path))


def test_a_model_that_cannot_be_found_says_what_to_do(monkeypatch):
    with pytest.raises(FileNotFoundError, match="neither 'emoji', nor a local folder"):
        load_pipeline("./nowhere/at/all")
