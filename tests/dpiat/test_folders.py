"""Folders as Hugging Face's libraries write them: config.json, shards and their index."""

import copy
import json
import warnings
from pathlib import Path

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from dpiat import load, plan, rank, similarity, transfer
from dpiat.__main__ import main

INDEX = "model.safetensors.index.json"


def llama(width: int = 16, layers: int = 2, tied: bool = False, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return transformers.LlamaForCausalLM(config)


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def source() -> nn.Module:
    return llama(layers=12)


@pytest.fixture
def folder(source, tmp_path):
    source.save_pretrained(tmp_path / "big", max_shard_size="10KB")
    assert len(list((tmp_path / "big").glob("*.safetensors"))) > 2
    return tmp_path / "big"


def as_bin(folder, state) -> None:
    """Write shards as transformers 4 did, in the place of the others."""
    for file in [*folder.glob("*.safetensors"), folder / INDEX]:
        file.unlink()
    names, index = list(state), {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
        file = f"pytorch_model-{i:05}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_folder_gives_what_its_network_gives(source, folder, kind):
    if kind == "bin":
        as_bin(folder, source.state_dict())
    first, second = llama(8, 3, seed=1), llama(8, 3, seed=1)
    assert transfer(f"{folder}/", first).entries == transfer(source, second).entries
    assert equal(first, second)
    assert plan(folder, first).to_json() == plan(source, first).to_json()
    assert similarity(folder, first) == similarity(source, first)
    assert type(load(folder)) is type(source) and equal(load(folder), source)


def test_a_folder_is_one_source_beside_files(source, folder):
    torch.save(llama().state_dict(), folder.parent / "other.pt")
    assert [found.source for found in rank(source, [str(folder)])] == [str(folder)]
    found = rank(source, [f"{folder.parent}/"])
    assert [(each.source, each.similarity == 1) for each in found] == [
        (str(folder), True),
        (str(folder.parent / "other.pt"), False),
    ]


@pytest.mark.parametrize("tied", [True, False])
def test_one_file_and_tied_embeddings(tmp_path, tied):
    source, target = llama(tied=tied), llama(tied=tied, seed=1)
    source.save_pretrained(tmp_path)
    assert transfer(tmp_path, target).share == 1 and equal(source, target)
    found = load(tmp_path)
    assert (found.lm_head.weight is found.model.embed_tokens.weight) == tied


def test_values_stay_in_the_files(source, folder):
    found = load(folder).model.layers[3].mlp.up_proj.weight
    assert found.untyped_storage().data_ptr() and any(".safetensors" in line for line in mapped())
    torch.save(source.state_dict(), folder.parent / "one.pt")
    kept = load(folder.parent / "one.pt")
    assert any("one.pt" in line for line in mapped()) and equal(kept, source)


def mapped() -> list[str]:
    """The files that are mapped into the memory of this process."""
    return Path("/proc/self/maps").read_text().splitlines()


def test_without_transformers_names_must_agree(source, folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    target = llama(layers=12, seed=1)
    assert transfer(folder, target).share == 1 and equal(source, target)
    with pytest.raises(
        ValueError, match=r"big has its tensors in an order .* \(pip install transformers.*like=network"
    ):
        transfer(folder, llama())
    assert equal(load(folder, like=source), source)
    as_bin(folder, source.state_dict())
    assert list(load(folder).state_dict()) == list(source.state_dict())  # their own order is the network's


def test_a_head_may_be_missing_and_what_nobody_knows_is_named(tmp_path):
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    network = transformers.BertModel(config)
    network.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"architectures": ["BertForSequenceClassification"]}))
    found = load(tmp_path)
    assert type(found) is transformers.BertModel and equal(found, network)
    # As the first checkpoints of BERT were written: from TensorFlow's names, with heads of the pretraining.
    old = {
        f"bert.{key.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')}": tensor
        for key, tensor in network.state_dict().items()
    }
    save_file({**old, "cls.seq_relationship.bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.warns(UserWarning, match=r"cls\.seq_relationship\.bias left out, which BertModel does not have"):
        assert equal(load(tmp_path), network)


def test_names_of_older_versions_and_experts_on_their_own(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 11, "num_attention_heads": 2, "intermediate_size": 32}
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**small, image_size=16, patch_size=8))
    vit.save_pretrained(tmp_path / "vit")
    assert equal(load(tmp_path / "vit"), vit)
    experts = transformers.MixtralConfig(**small, vocab_size=32, num_key_value_heads=2, num_local_experts=2)
    transformers.MixtralForCausalLM(experts).save_pretrained(tmp_path / "experts")
    names = [name for name in load(tmp_path / "experts").state_dict() if name.startswith("model.layers.")]
    assert [int(name.split(".")[2]) for name in names] == sorted(int(name.split(".")[2]) for name in names)
    assert "self_attn" in names[0] and "experts.1" in " ".join(names)


def test_a_folder_of_timms_is_the_network(tmp_path):
    source = timm.create_model("resnet10t", num_classes=7)
    save_for_hf(source, tmp_path / "mine")
    with warnings.catch_warnings(action="error"):
        assert equal(load(tmp_path / "mine"), source)


def test_mistakes_are_named_in_one_line(source, folder, capsys):
    shards = sorted(folder.glob("*.safetensors"))
    index = (folder / INDEX).read_text()

    def says(message: str, words=None) -> None:
        assert main(words or ("similarity", str(folder), str(folder))) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

    held = shards[0].read_bytes()
    shards[0].unlink()
    says(f"{shards[0]} is missing, which {INDEX} names")
    shards[0].write_bytes(held)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"no.such": shards[1].name}}))
    says(f"{INDEX} does not fit its shards: {shards[1].name} has no tensor no.such")
    for text in ("{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        (folder / INDEX).write_text(text)
        says(f"{INDEX} is not an index of shards")
    (folder / INDEX).unlink()
    says(f"big holds {shards[0].name} and {shards[-1].name}, and no {INDEX} that joins shards")
    (folder / INDEX).write_text(index)
    settings = json.loads((folder / "config.json").read_text())
    for text, message in (
        ("{", "(its config.json is not JSON)"),
        (json.dumps({**settings, "model_type": "unheard"}), "transformers cannot build it from config.json: "),
        (json.dumps({**settings, "hidden_size": 32}), "(config.json does not fit: "),
        (json.dumps({**settings, "num_hidden_layers": 13}), "has model.layers.12."),
    ):
        (folder / "config.json").write_text(text)
        says(message)
    for file in [*shards, folder / INDEX]:
        file.unlink()
    says("big holds no weights: they would be in model.safetensors, or in shards with an index")
    says("is a folder of weights, not a network", ("transfer", "--source", "x", "--target", str(folder), "--out", "y"))
    says("nowhere does not exist", ("similarity", "nowhere/", "resnet10t"))
    assert equal(llama(layers=12), source)


def test_the_command_line_takes_a_folder_and_writes_safetensors(source, folder, tmp_path, capsys):
    (tmp_path / "made").mkdir()
    words = ("--source", str(folder), "--target", "test_folders:llama", "--out")
    for given, written in (("new", "new.safetensors"), ("new.pt", "new.pt")):
        assert main(("transfer", *words, str(tmp_path / "made" / given))) == 0
        assert capsys.readouterr().out.startswith(f"{tmp_path / 'made' / written}: ")
        expected = copy.deepcopy(llama())
        transfer(source, expected)
        assert list(load(tmp_path / "made" / written).state_dict())
        assert equal(load(tmp_path / "made" / written, like=expected), expected)
