"""Protocols: what a stored score depends on changes its fingerprint, and nothing else does."""

import json
from dataclasses import replace

import pytest

from metrics import protocols
from metrics.protocols import ClipProtocol, DetectionProtocol, LpipsProtocol, emoji_detection
from tracer.folders import emoji_world


def test_the_emoji_detection_is_marked_and_carries_its_calibrated_threshold():
    protocol = emoji_detection()
    stored = json.loads((emoji_world() / "owlv2" / "protocol.json").read_text())
    assert protocol.threshold == stored["threshold"]
    assert protocol.world == "emoji"
    assert protocol.name.startswith("emoji-owlv2#")
    assert protocol.name.endswith("@0.26,argmax")


def test_names_differ_with_every_choice_but_not_with_the_folder():
    base = DetectionProtocol(checkpoint="/one/owlv2")
    assert base.name == replace(base, checkpoint="/other/owlv2").name
    others = [
        replace(base, threshold=0.11),
        replace(base, template="a {obj}"),
        replace(base, assignment="distinct"),
        replace(base, world="emoji"),
        replace(base, revision="v2"),
        replace(base, weights="0" * 64),
    ]
    assert len({protocol.name for protocol in [base, *others]}) == 7


def test_views_of_stored_scores_do_not_change_what_they_are_stored_under():
    base = DetectionProtocol()
    assert replace(base, threshold=0.3, assignment="distinct").fingerprint == base.fingerprint
    assert replace(base, key="another-name").fingerprint.split("#")[1] == base.fingerprint.split("#")[1]


def test_another_major_version_of_a_library_is_another_protocol(monkeypatch):
    base, real = DetectionProtocol(), protocols.installed
    before = base.fingerprint
    versions = {"transformers": "5.99.1"}
    monkeypatch.setattr(protocols, "installed", lambda name: versions.get(name) or real(name))
    assert base.fingerprint == before
    versions["transformers"] = "6.0"
    assert base.fingerprint != before


def test_before_the_first_major_version_every_minor_one_counts(monkeypatch):
    monkeypatch.setattr(protocols, "installed", lambda name: "0.29.1+cpu")
    assert LpipsProtocol().facts["libraries"] == {"torch": "0.29", "torchvision": "0.29", "lpips": "0.29"}


def test_images_have_one_vector_however_texts_are_combined():
    plain = ClipProtocol()
    assert plain.tower == replace(plain, ensemble="ae80").tower == replace(plain, key="x").tower
    assert plain.tower != replace(plain, checkpoint="ViT-L-14-quickgelu").tower
    assert plain.fingerprint != replace(plain, ensemble="ae80").fingerprint


def test_every_registered_protocol_has_a_key_and_a_fingerprint_of_its_own():
    known = protocols.known_protocols()
    assert all(protocol.key == key for key, protocol in known.items())
    assert len({protocol.fingerprint for protocol in known.values()}) == len(known)
    assert {key for key, protocol in known.items() if protocol.world == "emoji"} == {
        key for key in known if key.startswith("emoji-")
    }


@pytest.mark.parametrize(
    ("template", "obj", "query"),
    [
        ("a photo of a {obj}", "cat", "a photo of a cat"),
        ("a photo of a {obj}", "elephant", "a photo of an elephant"),
        ("{obj}", "elephant", "elephant"),
    ],
)
def test_queries_carry_the_right_article(template, obj, query):
    assert DetectionProtocol(template=template).query(obj) == query


@pytest.mark.parametrize("wrong", [{"threshold": 1.0}, {"template": "a photo"}, {"assignment": "best"}])
def test_impossible_protocols_are_refused(wrong):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        DetectionProtocol(**wrong)
