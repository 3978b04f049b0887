"""The index of timm's architectures: what it keeps, when it is built again, and that ranking from it is exact."""

import hashlib
import io
import json
import logging
import re
import sys
from pathlib import Path

import pytest
from networks import on_meta

from dpiat import coverage, rank, reading, similarity, standardize, timm_index
from dpiat.timm_index import cache_file, timm_architectures

NAMES = ["mnasnet_100", "resnet10t", "vit_tiny_patch16_224"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_it_keeps_all_that_matching_looks_at(cache, monkeypatch):
    built = timm_architectures(NAMES)
    assert [file.parent for file in cache.rglob("*.gz")] == [cache / "dpiat"]
    monkeypatch.setattr(timm_index, "_built", None)  # from here on, only the cache will do
    read = timm_architectures(NAMES)
    assert list(read) == NAMES and read == built
    for name in NAMES:
        assert read[name].signature == standardize(on_meta(name)).signature


@pytest.mark.slow
def test_a_damaged_file_is_built_again(caplog):
    built = timm_architectures(NAMES[:1])
    file = cache_file(NAMES[:1])
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"no gzip at all"):
        file.write_bytes(damaged)
        assert timm_architectures(NAMES[:1]) == built and file.read_bytes() == whole
        assert f"{file} cannot be read" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    ("owner", "name"),
    [(timm_index, "FORMAT"), (reading, "VERSION"), ("timm", "__version__"), ("torch", "__version__")],
)
def test_each_version_and_each_list_of_names_has_a_file_of_its_own(monkeypatch, owner, name):
    files = {cache_file(NAMES), cache_file(NAMES[:1])}
    monkeypatch.setattr(*([f"{owner}.{name}"] if isinstance(owner, str) else [owner, name]), "0.0")
    files |= {cache_file(NAMES), cache_file(NAMES[:1])}
    assert len(files) == 4


def test_a_comment_in_the_code_does_not_build_it_again(tmp_path, monkeypatch):
    built = timm_architectures(NAMES[:1])
    for module in (timm_index, reading):
        commented = tmp_path / f"{module.__name__}.py"
        commented.write_text("# A comment.\n" + Path(module.__file__).read_text())
        monkeypatch.setattr(module, "__file__", str(commented))
    monkeypatch.setattr(timm_index, "_built", None)
    assert timm_architectures(NAMES[:1]) == built
    monkeypatch.setattr(reading, "VERSION", reading.VERSION + 1)
    with pytest.raises(TypeError, match="NoneType"):
        timm_architectures(NAMES[:1])


def test_an_index_of_other_content_has_another_format():
    names = [*NAMES, "mixnet_s", "convnext_atto"]
    content = json.dumps(timm_index._packed({name: timm_index._architecture(name) for name in names}))
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    known = {
        **dict.fromkeys(((1, 3), (1, 4), (1, 5)), "d6c706bcd6f1"),
        **dict.fromkeys(((2, 5), (2, 6)), "9cfc38b9e1d3"),
    }
    assert known.get((timm_index.FORMAT, reading.VERSION)) == digest, "raise FORMAT, and write down the new digest"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_on_a_terminal_alone(capsys, caplog, monkeypatch):
    caplog.set_level(logging.INFO, "dpiat")
    timm_architectures(NAMES[:2])
    assert "building the index of 2 networks" in caplog.text and capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    timm_architectures(NAMES[1:])
    assert re.search(r"index of timm: .*/2 \[.* networks/s\]", sys.stderr.getvalue())


def test_what_cannot_be_built_is_logged_and_left_out(caplog):
    assert list(timm_architectures(["resnet10t", "resnet_none"])) == ["resnet10t"]
    assert "resnet_none left out: Unknown model (resnet_none)" in caplog.text


def test_without_timm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match="pip install timm"):
        timm_architectures()


def test_ranking_all_of_timm_equals_the_direct_computation(monkeypatch):
    monkeypatch.setattr("timm.list_models", lambda: NAMES)
    target = on_meta("mnasnet_100")
    found = rank(target)
    assert found == rank(target, "timm")
    assert {candidate.source: candidate.pretrained for candidate in found} == dict.fromkeys(NAMES, True)
    direct = {name: on_meta(name) for name in NAMES}
    assert [candidate._replace(pretrained=None) for candidate in found] == rank(target, direct)
    for candidate in found:
        source = direct[candidate.source]
        assert candidate.similarity == similarity(source, target)
        assert (candidate.to_target, candidate.to_source) == (coverage(source, target), coverage(target, source))


@pytest.mark.parametrize("sources", [3, [on_meta("mnasnet_100")]])
def test_what_is_no_collection_of_sources_is_refused(sources):
    with pytest.raises(TypeError, match="sources must be a mapping"):
        rank(on_meta("mnasnet_100"), sources)
