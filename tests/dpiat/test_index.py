"""The index of timm's architectures: what it keeps, when it is built again, and that ranking from it is exact."""

import pytest
from networks import on_meta

from dpiat import coverage, index, rank, similarity, standardize
from dpiat.index import cache_file, timm_architectures

NAMES = ["mnasnet_100", "resnet10t", "vit_tiny_patch16_224"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_it_keeps_all_that_matching_looks_at(cache, monkeypatch):
    built = timm_architectures(NAMES)
    assert [file.parent for file in cache.rglob("*.gz")] == [cache / "dpiat"]
    monkeypatch.setattr(index, "_built", None)  # from here on, only the cache will do
    read = timm_architectures(NAMES)
    assert list(read) == NAMES and read == built
    for name in NAMES:
        assert read[name].signature == standardize(on_meta(name)).signature


def test_a_damaged_file_is_built_again(capsys):
    built = timm_architectures(NAMES[:1])
    file = cache_file(NAMES[:1])
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"no gzip at all"):
        file.write_bytes(damaged)
        assert timm_architectures(NAMES[:1]) == built and file.read_bytes() == whole
        assert f"{file} cannot be read" in capsys.readouterr().err


def test_other_rules_versions_and_names_have_another_file(tmp_path, monkeypatch):
    files = {cache_file(NAMES), cache_file(NAMES[:1])}
    rules = tmp_path / "standardization.py"
    rules.write_text("other rules")
    with monkeypatch.context() as other:
        other.setattr(index.standardization, "__file__", str(rules))
        files.add(cache_file(NAMES))
    with monkeypatch.context() as other:
        other.setattr("timm.__version__", "0.0")
        files.add(cache_file(NAMES))
    with monkeypatch.context() as other:
        other.setattr("torch.__version__", "0.0")
        files.add(cache_file(NAMES))
    assert len(files) == 5


def test_what_cannot_be_built_is_named_and_left_out(capsys):
    assert list(timm_architectures(["resnet10t", "resnet_none"])) == ["resnet10t"]
    assert "dpiat: resnet_none left out: Unknown model (resnet_none)" in capsys.readouterr().err


def test_without_timm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(index.sys.modules, "timm", None)
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
