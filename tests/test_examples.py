"""The examples run, and do what they say. The cookbook shows these files."""

import ast
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(file.stem for file in (ROOT / "examples").glob("*.py"))


def run(name: str) -> dict:
    """The names that an example defines."""
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_example_has_a_test_and_a_place_in_the_cookbook(name):
    cookbook = (ROOT / "docs" / "cookbook.md").read_text()
    said = ast.get_docstring(ast.parse((ROOT / "examples" / f"{name}.py").read_text())).partition("\n\n")[0]
    assert f"test_{name}" in globals() and f'--8<-- "examples/{name}.py"' in cookbook
    assert f"| [{name}.py](../examples/{name}.py) | {said} |\n" in cookbook


def test_other_classes():
    found = run("other_classes")
    assert found["silent"] == ["classifier.weight"]
    source, target = (found[role].classifier.bias for role in ("source", "target"))
    assert torch.equal(target[:2], source[[found["tabby"], found["retriever"]]])


def test_other_inputs():
    found = run("other_inputs")
    source, grey, infrared = (found[name].eval() for name in ("source", "grey", "infrared"))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(grey(images[:, :1]), source(images[:, :1].expand(-1, 3, -1, -1)), atol=1e-4)
        assert torch.allclose(infrared(torch.cat([images, torch.rand(2, 1, 32, 32)], 1)), source(images), atol=1e-4)


def test_vit_other_size():
    found = run("vit_other_size")
    assert {entry.target for entry in found["report"].entries if entry.rule} == {"pos_embed", "patch_embed.proj.weight"}
    assert torch.equal(found["target"].pos_embed[:, 0], found["source"].pos_embed[:, 0])


def test_deeper_llm():
    entries = run("deeper_llm")["planned"].report.entries
    queries = [entry.source.split(".")[2] for entry in entries if "self_attn.q_proj" in entry.target]
    assert len(queries) == 4 and queries == sorted(queries) and set(queries) == {"0", "1"}


def test_mixture_of_experts():
    found = run("mixture_of_experts")
    assert found["difference"] < 1e-5
    left = [entry.target for entry in found["report"].entries if entry.action == "left"]
    assert left == [f"model.layers.{place}.mlp.gate.weight" for place in (0, 1)]


def test_video_from_images():
    found = run("video_from_images")
    assert torch.allclose(found["videos"][0][0].weight.sum(2), found["pictures"][0][0].weight, atol=1e-6)


def test_pruned(capsys):
    assert (run("pruned")["masked"].conv_head.weight == 0).float().mean() >= 0.9
    assert "% of the masked layer is 0" in capsys.readouterr().out


def test_nas_loop(capsys):
    assert list(run("nas_loop")["trained"]) == ["resnet10t", "resnet14t", "resnet18"]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("resnet14t starts from resnet10t: ") and said[1].startswith("resnet18 starts from ")


def test_optimizer_state():
    found = run("optimizer_state")
    given, received = (
        found[f"{role}_adam"].state[found[role].conv1[0].weight]["exp_avg"] for role in ("source", "target")
    )
    assert received.any() and torch.equal(given, received)


@pytest.mark.slow
def test_what_survived():
    found = run("what_survived")
    *stages, classifier = found["checked"].stages
    assert len(stages) == 6 and all(stage.agreement > 0.99 for stage in stages)
    assert found["compared"].stages[-2].agreement < 0.5
    shares = [(stage.own * stage.elements, stage.elements) for stage in (*stages, classifier)]
    assert sum(left for left, _ in shares) > sum(elements for _, elements in shares) / 3


@pytest.mark.training
def test_training_loop(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("training_loop")
    assert "elements filled" in (said := capsys.readouterr().out) and "epoch 2" in said
    run("training_loop")
    assert capsys.readouterr().out == ""  # its own checkpoint is complete


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Lightning's own
def test_lightning_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("lightning_module")
    first, again = found["module"], found["again"]
    assert first.started_from.share > 0.4 and not [key for key in first.state_dict() if "source" in key]
    assert again.started_from is None and again.trainer.current_epoch == 2 and again.trainer.global_step == 4


def test_edit_a_plan():
    found = run("edit_a_plan")
    entries = {entry.target: entry for entry in found["report"].entries}
    assert entries["fc.weight"].action == "left" and entries["layer4.1.conv2.weight"].source == "layer4.0.conv2.weight"
