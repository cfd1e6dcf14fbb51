"""Single-file checkpoints of Stable Diffusion, in the layout of the code that trained it.

Conventions: a file's family is told by the names of its tensors; shapes, scheduler and tokenizers come from a folder in
diffusers' layout. Names are turned into diffusers' by diffusers itself (`from_single_file`).
"""

from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from tracer.hub import PICKLES, HubModel, fetched_configs, parts_of, said, source_of, without_vocabulary

_UNET = "model.diffusion_model."  # of the names in a file


@dataclass(frozen=True)
class _Layout:
    """How a family's single files are told apart: ``key``, of the text encoder, is in no other family's."""

    family: str
    key: str
    pipeline: str
    config: str | None


_LAYOUTS = (
    _Layout(
        "Stable Diffusion 1.x", "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "StableDiffusionPipeline", "sd15",
    ),
    # Whether a 2.x predicts noise or velocity is not in the file: there is no config to take by default.
    _Layout(
        "Stable Diffusion 2.x", "cond_stage_model.model.token_embedding.weight", "StableDiffusionPipeline", None,
    ),
    _Layout(
        "Stable Diffusion XL", "conditioner.embedders.1.model.positional_embedding", "StableDiffusionXLPipeline",
        "sdxl",
    ),
)  # fmt: skip


def load_single_file(path: Path, dtype: torch.dtype, config: str | Path | None) -> DiffusionPipeline:
    """Load a single file; the networks' shapes, the scheduler and the tokenizers are those of `config`.

    Raises:
        FileNotFoundError: there is no such file, or no such config, or that lacks a file.
        ValueError: the file is a pickle, of no known family, or does not fit `config`; or `config` must be given.
    """
    layout, n_unet = _layout(path)
    folder = _config_folder(path, layout, config)
    family = getattr(diffusers, layout.pipeline)
    told = f"{str(path)!r} ({layout.family} by its keys) does not fit config {str(config or layout.config)!r}"
    try:
        pipe = family.from_single_file(
            str(path), config=str(folder), torch_dtype=dtype, local_files_only=True, extract_ema=True,
            feature_extractor=None, image_encoder=None,
        )  # fmt: skip
    except OSError as error:
        raise FileNotFoundError(f"the config folder {str(folder)!r} is not whole: {said(error)}") from error
    except ValueError as error:
        reason = said(error).partition(". ")[0]  # what follows is advice on diffusers' own options
        raise ValueError(f"{told}: {reason}") from error
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    empty = [name for network in networks for name, weight in network.named_parameters() if weight.is_meta]
    if empty or len(pipe.unet.state_dict()) != n_unet:
        raise ValueError(f"{told}: {'the file lacks ' + empty[0] if empty else 'some of its UNet would be left out'}")
    pipe.register_to_config(_name_or_path=str(path))
    return pipe


def _layout(path: Path) -> tuple[_Layout, int]:
    """Return the family of a single file, and how many of its tensors are the UNet's."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if path.suffix in PICKLES:
        raise ValueError(
            f"name must be a .safetensors file, got a pickle: {path}; convert it with `{_conversion(path)}`"
        )
    try:
        with safe_open(path, "pt") as file:
            keys = set(file.keys())
    except SafetensorError as error:
        raise ValueError(f"name must be a .safetensors file that can be read, got {str(path)!r}: {error}") from error
    n_unet = sum(key.startswith(_UNET) for key in keys)
    whole = n_unet > 0 and any(key.startswith(("first_stage_model.", "vae.")) for key in keys)
    for layout in _LAYOUTS:
        if whole and layout.key in keys:
            return layout, n_unet
    raise ValueError(
        f"name must be a whole checkpoint (UNet, autoencoder and text encoder in one file) of "
        f"{', '.join(layout.family for layout in _LAYOUTS)}, got {str(path)!r} with {sorted(keys)[:3]} and others"
    )


def _conversion(path: Path) -> str:
    """Return the command that makes a pickle a .safetensors file; nothing but tensors is unpickled."""
    return (
        f"python -c \"import torch, safetensors.torch as s; d = torch.load(r'{path}', 'cpu', weights_only=True); "
        "d = d.get('state_dict', d); s.save_file({k: v.clone().contiguous() for k, v in d.items() "
        f"if torch.is_tensor(v)}}, r'{path.with_suffix('.safetensors')}')\""
    )


def _config_folder(path: Path, layout: _Layout, config: str | Path | None) -> Path:
    """Return the folder that says a single file's shapes, and has its tokenizers."""
    if config is None and layout.config is None:
        raise ValueError(
            f"config must be given for {str(path)!r}, {layout.family} by its keys: whether it predicts noise "
            "(config='sd2' or 'sd21') or velocity is not in the file"
        )
    source = source_of(str(config or layout.config))
    folder = fetched_configs(source) if isinstance(source, HubModel) else source
    parts = parts_of(folder)
    if parts["_class_name"] != layout.pipeline:
        raise ValueError(
            f"config must be of a {layout.pipeline}, which {str(path)!r} is by its keys, got a {parts['_class_name']}"
        )
    if lacking := without_vocabulary(folder, parts):
        reason = f"{lacking} has no vocabulary"
        if isinstance(source, HubModel):
            raise source.missing(f"what is there is not all ({reason})", configs_only=True)
        raise FileNotFoundError(f"the config folder {str(folder)!r} is not whole: {reason}")
    return folder
