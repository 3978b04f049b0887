"""Heads: what gives the outputs of a network, wherever it is registered; each class keeps its own meaning."""

import fnmatch

import pytest
import torch
from torch import nn

from dpiat import Plan, plan, transfer

as_given = pytest.mark.parametrize("stored", [False, True], ids=["module", "state dict"])


def numbered(network: nn.Module) -> nn.Module:
    """Each row holds its number, plus 1."""
    with torch.no_grad():
        for parameter in network.parameters():
            rows = torch.arange(1.0, len(parameter) + 1)
            parameter.copy_(rows.view(-1, *[1] * (parameter.dim() - 1)).expand_as(parameter))
    return network


class Detr(nn.Module):
    """The classes come before the boxes; a last class is "no object"."""

    def __init__(self, classes: int):
        super().__init__()
        self.backbone, self.query_embed = nn.Conv2d(3, 16, 3), nn.Embedding(10, 16)
        self.class_embed = nn.Linear(16, classes + 1)
        self.bbox_embed = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


class DeformableDetr(nn.Module):
    """A head for each layer of the decoder."""

    def __init__(self, classes: int):
        super().__init__()
        self.backbone = nn.Conv2d(3, 16, 3)
        self.class_embed = nn.ModuleList(nn.Linear(16, classes) for _ in range(3))
        self.bbox_embed = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)) for _ in range(3))


class RetinaNet(nn.Module):
    """Classes and boxes of nine anchors from towers of 3 × 3 convolutions, as torchvision has them."""

    def __init__(self, classes: int):
        super().__init__()
        self.backbone = nn.Conv2d(3, 16, 3)
        towers = {"conv": nn.Conv2d(16, 16, 3), "cls_logits": nn.Conv2d(16, 9 * classes, 3)}
        boxes = {"conv": nn.Conv2d(16, 16, 3), "bbox_reg": nn.Conv2d(16, 9 * 4, 3)}
        self.head = nn.ModuleDict(
            {"classification_head": nn.ModuleDict(towers), "regression_head": nn.ModuleDict(boxes)}
        )


class FasterRCNN(nn.Module):
    """Boxes for each class, as torchvision has them."""

    def __init__(self, classes: int):
        super().__init__()
        self.backbone, self.box_head = nn.Conv2d(3, 16, 3), nn.Linear(16, 32)
        parts = {"cls_score": nn.Linear(32, classes), "bbox_pred": nn.Linear(32, 4 * classes)}
        self.box_predictor = nn.ModuleDict(parts)


class FirstHead(nn.Module):
    """A classifier that is registered before the body."""

    def __init__(self, classes: int):
        super().__init__()
        self.classifier = nn.Linear(16, classes)
        self.body = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16))


class Several(nn.Module):
    """Two questions about one image."""

    def __init__(self, species: int, colours: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16))
        self.heads = nn.ModuleDict({"species": nn.Linear(16, species), "colour": nn.Linear(16, colours)})


# A network of so many classes, and the patterns of the names of what classifies, and of what does not.
DETECTORS = {
    "detr": (Detr, "class_embed.*", "bbox_embed.*"),
    "deformable detr": (DeformableDetr, "class_embed.*", "bbox_embed.*"),
    "retinanet": (RetinaNet, "*.cls_logits.*", "*.bbox_reg.*"),
    "faster r-cnn": (FasterRCNN, "box_predictor.*", "box_head.*"),
    "a head before the body": (FirstHead, "classifier.*", "body.*"),
}
detectors = pytest.mark.parametrize(("make", "classes", "rest"), DETECTORS.values(), ids=DETECTORS.keys())


@detectors
@as_given
@pytest.mark.parametrize(
    ("head", "given", "wanted"), [("auto", 91, 5), ("auto", 5, 91), ("skip", 91, 5), ("skip", 5, 5)]
)
def test_a_class_head_is_left_wherever_it_is(make, classes, rest, stored, head, given, wanted):
    source, target = make(given), make(wanted)
    report = transfer(source.state_dict() if stored else source, target, head=head, new="random")
    chosen = [entry for entry in report.entries if fnmatch.fnmatch(entry.target, classes)]
    assert chosen and all(entry.action == "left" and entry.note for entry in chosen)


@detectors
@as_given
def test_a_class_head_of_other_classes_gives_its_own_bias_at_first(make, classes, rest, stored):
    source, target = make(91), make(5)
    own = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    report = transfer(source.state_dict() if stored else source, target)
    chosen = [entry for entry in report.entries if fnmatch.fnmatch(entry.target, classes)]
    silent = {entry.target for entry in chosen if entry.action == "zero"}
    now = target.state_dict()
    assert silent and all(name.endswith("weight") and not now[name].any() for name in silent)
    assert all(torch.equal(now[e.target], own[e.target]) for e in chosen if e.target not in silent and not e.shared)


class Normalized(nn.Linear):
    """A classifier by angles, as for faces: zero weights have none."""

    def forward(self, x):
        return nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))


@pytest.mark.parametrize(
    "last",
    [
        lambda n: Normalized(16, n),
        lambda n: nn.utils.parametrizations.weight_norm(nn.Linear(16, n)),
        lambda n: nn.Linear(16, n, bias=False),  # its outputs may be normalized afterwards
    ],
)
def test_a_classifier_that_cannot_be_zero_is_left(last):
    source, target = (nn.Sequential(nn.Linear(3, 16), nn.ReLU(), last(n)) for n in (20, 6))
    own = target[2].weight.detach().clone()
    report = transfer(source, target)
    assert torch.equal(target[2].weight, own)
    assert not any(entry.action == "zero" for entry in report.entries)


class Tied(nn.Module):
    """A language model whose classifier, which stands first, is its embedding."""

    def __init__(self, tokens: int, tied: bool):
        super().__init__()
        self.lm_head = nn.Linear(16, tokens, bias=False)
        self.wte = nn.Embedding(tokens, 16)
        self.body = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        if tied:
            self.wte.weight = self.lm_head.weight


@pytest.mark.parametrize("tied", [True, False])
def test_a_classifier_that_is_an_embedding_is_not_zero(tied):
    source, target = numbered(Tied(50, True)), Tied(60, tied)
    transfer(source, target)
    assert (target.wte.weight[:50] > 0).all()
    assert target.wte.weight[50:].all()


def test_a_plan_that_was_kept_makes_a_classifier_zero_too():
    source, target, other = Several(20, 4), Several(6, 4), Several(6, 4)
    kept = plan(source, target).to_json()
    Plan.from_json(kept, source, other).apply()
    transfer(source, target)
    assert not other.heads["species"].weight.any() and not target.heads["species"].weight.any()
    assert other.heads["species"].bias.any()


@detectors
@as_given
def test_what_is_no_class_head_is_filled_beside_one_of_other_classes(make, classes, rest, stored):
    source, target = make(91), make(5)
    found = plan(source.state_dict() if stored else source, target).report.entries
    assert [e.target for e in found if not fnmatch.fnmatch(e.target, classes) and e.source != e.target] == []
    assert any(fnmatch.fnmatch(entry.target, rest) for entry in found)


@detectors
@as_given
def test_a_class_head_of_as_many_classes_is_copied(make, classes, rest, stored):
    source, target = make(5), make(5)
    report = transfer(source.state_dict() if stored else source, target)
    assert report.share == 1 and all(entry.source == entry.target for entry in report.entries)


@pytest.mark.parametrize("make", [Detr, DeformableDetr, FirstHead])
@as_given
def test_classes_are_mapped_though_their_head_is_not_last(make, stored):
    source, target = numbered(make(91)), make(5)
    own = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    transfer(source.state_dict() if stored else source, target, head={0: 17, 3: 2})
    heads = [name for name in own if name.startswith("class")]
    assert heads
    for name in heads:
        ours = target.state_dict()[name]
        assert (ours[0] == 18).all() and (ours[3] == 3).all()
        assert torch.equal(ours[[1, 2, 4]], own[name][[1, 2, 4]])


@as_given
def test_a_mapping_may_name_its_head(stored):
    source, target = numbered(Detr(91)), Detr(5)
    own = target.class_embed.weight.detach().clone()
    transfer(source.state_dict() if stored else source, target, head={"class_embed": {0: 17, 3: 2}})
    assert target.class_embed.weight[:, 0].tolist() == [18, *own[1:3, 0].tolist(), 3, *own[4:, 0].tolist()]
    assert torch.equal(target.bbox_embed[2].weight, source.bbox_embed[2].weight)


def test_a_mapping_names_several_heads_by_a_pattern():
    source, target = numbered(DeformableDetr(91)), DeformableDetr(5)
    transfer(source, target, head={"class_embed.*": {1: 40}})
    assert [int(layer.weight[1, 0]) for layer in target.class_embed] == [41, 41, 41]


def test_of_several_heads_each_follows_its_own_classes():
    source, target = numbered(Several(20, 4)), Several(6, 4)
    own = target.heads["species"].weight.detach().clone()
    transfer(source, target, new="random")
    assert torch.equal(target.heads["species"].weight, own)
    assert torch.equal(target.heads["colour"].weight, source.heads["colour"].weight)


def test_a_mapping_of_one_head_leaves_the_rule_of_the_others():
    source, target = numbered(Several(20, 4)), Several(6, 4)
    own = target.heads["species"].weight.detach().clone()
    transfer(source, target, head={"heads.species": {2: 19}})
    assert (target.heads["species"].weight[2] == 20).all()
    assert torch.equal(target.heads["species"].weight[:2], own[:2])
    assert torch.equal(target.heads["colour"].weight, source.heads["colour"].weight)


def test_heads_of_equal_sizes_are_not_exchanged():
    source, target = numbered(Several(5, 5)), Several(5, 5)
    source.heads["colour"].weight.data.neg_()
    transfer(source, target)
    assert (target.heads["species"].weight > 0).all() and (target.heads["colour"].weight < 0).all()


@pytest.mark.parametrize("head", [{"no_such": {0: 1}}, {"class_embed": {9: 0}}, {"class_embed": {0: 999}}])
def test_a_mapping_that_does_not_fit_is_refused(head):
    with pytest.raises(ValueError, match="head"):
        plan(Detr(91), Detr(5), head=head)


def test_a_classifier_fills_no_inner_layer_but_one_like_it():
    """A detector's first linear layer is not the classifier of its backbone; an encoder may have become a part."""
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 10))
    body, box = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), nn.Linear(12, 12)
    detector = nn.ModuleDict({"backbone": body, "box_head": box, "cls_score": nn.Linear(12, 3)})
    report = plan(backbone, detector).report
    assert {entry.target for entry in report.entries if entry.filled} == {"backbone.0.weight", "backbone.0.bias"}
    encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
    whole = nn.Sequential(*encoder, nn.ReLU(), nn.Linear(8, 3))
    filled = {entry.target for entry in plan(encoder, whole).report.entries if entry.filled}
    assert filled == {"0.weight", "0.bias", "2.weight", "2.bias"}
