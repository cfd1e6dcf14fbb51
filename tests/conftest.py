"""What many tests need: real tokenizers, from files that are already on the disk, and a pipeline of random weights."""

import atexit
import gzip
import os
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from hypothesis import settings
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tracer.folders import emoji_world

torch.set_num_threads(1)  # the networks are tiny: two threads on two shared cores only wait for each other
CLIP_MERGES = 49_152 - 256 - 2  # of the lines in the file, the ones that CLIP was trained with

settings.register_profile("shared", deadline=None)  # what else runs on the machine is no test's fault
settings.load_profile("shared")


@atexit.register
def _quiet_end() -> None:
    """Keep DuckDB's report of leaked types off the screen: they are held by the checks of tests alone.

    With torch imported, beartype's wrappers of functions that name a DuckDB type outlive the interpreter's
    own clean-up; the binding takes that for a leak and prints forty lines below pytest's last one.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


@pytest.fixture(scope="session")
def emoji_tokenizer() -> CLIPTokenizer:
    """The emoji world's tokenizer, as its generator loads it."""
    return CLIPTokenizer.from_pretrained(emoji_world() / "sd" / "tokenizer", local_files_only=True)


@pytest.fixture(scope="session")
def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """CLIP's ids and merges, from the file that comes with open_clip."""
    packed = Path(str(files("open_clip"))) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(packed.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : CLIP_MERGES + 1]]
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}, merges


@pytest.fixture(scope="session")
def clip_tokenizer(clip_vocabulary) -> CLIPTokenizer:
    """CLIP's own tokenizer, as SD 1.x has it: padded with the end token."""
    return CLIPTokenizer(*clip_vocabulary, model_max_length=77)


@pytest.fixture(scope="session")
def sd2_tokenizer(clip_vocabulary) -> CLIPTokenizer:
    """CLIP's own tokenizer, as SD 2.x has it: padded with "!", which is id 0."""
    return CLIPTokenizer(*clip_vocabulary, model_max_length=77, pad_token="!")


@pytest.fixture(scope="session")
def tiny_pipe(emoji_tokenizer) -> StableDiffusionPipeline:
    """Stable Diffusion with random weights, of the emoji world's shape but thinner; no test may change it for good."""
    torch.manual_seed(0)
    ends = {name: getattr(emoji_tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(
        vocab_size=len(emoji_tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=16, **ends,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=32,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae, CLIPTextModel(text).eval(), emoji_tokenizer, unet.eval(), DPMSolverMultistepScheduler(steps_offset=1),
        None, None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def tiny_model(tiny_pipe, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of `tiny_pipe`."""
    folder = tmp_path_factory.mktemp("model")
    tiny_pipe.save_pretrained(folder)
    return str(folder)
