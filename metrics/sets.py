"""Scores of whole sets: the kept vectors of two sets of images, compared, and the numbers kept too.

Conventions: a set is known by the SHA-256 of its images' sorted SHA-256, whatever the files are called; an image that
is there twice counts twice. So a number in the store belongs to exactly these images, this network and these weights.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from metrics.protocols import ClipProtocol, FeatureProtocol
from metrics.set_scores import SetScore, cmmd_scores, set_scores
from tracer.scores import SetScoreRow, add_set_scores
from tracer.store import Store

SEED = 2401_09603


def score_set(
    store: Store,
    images: Sequence[str],
    references: Sequence[str],
    protocol: FeatureProtocol | ClipProtocol,
) -> list[SetScoreRow]:
    """Return FID and KID (of features) or both CMMDs (of CLIP) of a set, from the store or computed and kept.

    Args:
        store: open for writing; holds the vectors of all images under the protocol.
        images: SHA-256 of each.
        references: of each image that they are compared with.
        protocol: as `metrics.scoring` returned it, with the hash of its weights.

    Raises:
        LookupError: an image has no vector.
        ValueError: a set has fewer than four images.
    """
    network = protocol.tower if isinstance(protocol, ClipProtocol) else protocol.fingerprint
    names = set_sha256(images), set_sha256(references)
    known = _kept(store, *names, network)
    if known:
        return known
    sets = vectors_of(store, images, network), vectors_of(store, references, network)
    measure = cmmd_scores if isinstance(protocol, ClipProtocol) else set_scores
    rows = [_row(*names, network, one) for one in measure(*sets, np.random.default_rng(SEED))]
    add_set_scores(store, rows)
    return rows


def set_sha256(images: Sequence[str]) -> str:
    """Return what a set of images is known by."""
    return hashlib.sha256("\n".join(sorted(images)).encode()).hexdigest()


def vectors_of(store: Store, images: Sequence[str], network: str) -> Float32[np.ndarray, "batch channel"]:
    """Return the vectors of images in the order of their sorted SHA-256, so that no order of files moves a bit.

    Raises:
        LookupError: an image has none.
    """
    rows = store.sql("SELECT item, vector FROM embeddings WHERE protocol = ?", [network])
    known = dict(zip(rows["item"], rows["vector"], strict=True))
    if missing := [image for image in images if image not in known]:
        raise LookupError(f"{len(missing)} of {len(images)} images have no vector of {network}, e.g. {missing[0][:8]}")
    return np.stack([np.asarray(known[image], np.float32) for image in sorted(images)])


def _kept(store: Store, images: str, references: str, network: str) -> list[SetScoreRow]:
    columns = ", ".join(SetScoreRow.__dataclass_fields__)
    where = "set_sha256 = ? AND reference_sha256 = ? AND protocol = ?"
    rows = store.sql(f"SELECT {columns} FROM set_scores WHERE {where} ORDER BY metric", [images, references, network])
    records: list[dict[str, Any]] = rows.to_dict("records")
    return [SetScoreRow(**{**row, "warnings": tuple(row["warnings"])}) for row in records]


def _row(images: str, references: str, network: str, one: SetScore) -> SetScoreRow:
    numbers = one.metric, one.value, one.low, one.high, one.n, one.n_reference, one.warnings
    return SetScoreRow(images, references, network, *numbers)
