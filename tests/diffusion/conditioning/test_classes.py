"""Class labels to context tokens, the null token, several classes at once, and the names that a person gives."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from unetdiff.diffusion.conditioning.classes import ClassConditioner
from unetdiff.diffusion.conditioning.load import load_conditioner
from unetdiff.errors import UserError

NAMES = ["zero", "one", "seven"]


@pytest.fixture
def conditioner() -> ClassConditioner:
    torch.manual_seed(0)
    return ClassConditioner(3, 8, tokens=2, labels=NAMES)


@pytest.fixture
def several() -> ClassConditioner:
    torch.manual_seed(0)
    return ClassConditioner(3, 8, labels=NAMES, max_classes=2)


def test_tokens_are_the_rows_of_the_table(conditioner: ClassConditioner) -> None:
    tokens = conditioner(torch.tensor([[2], [0]])).tokens
    assert tokens.shape == (2, 2, 8)
    assert torch.equal(tokens[0].flatten(), conditioner.table.weight[2])
    assert torch.equal(tokens[1, 1], conditioner.table.weight[0, 8:])


def test_nothing_is_the_row_after_the_last_class(conditioner: ClassConditioner, several: ClassConditioner) -> None:
    assert conditioner.null_condition(4).tolist() == [[3]] * 4
    assert torch.equal(conditioner(conditioner.null_condition(1)).tokens[0].flatten(), conditioner.table.weight[3])
    tokens = several(several.null_condition(1)).tokens[0]
    assert torch.equal(tokens[0], several.table.weight[3]) and not tokens[1].any()


def test_several_classes_fill_slots_and_empty_ones_are_zero(several: ClassConditioner) -> None:
    labels = several.encode(["one", "zero+seven", ["seven", 1]])
    assert labels.tolist() == [[1, -1], [0, 2], [2, 1]]
    tokens = several(labels).tokens
    assert torch.equal(tokens[0, 0], several.table.weight[1]) and not tokens[0, 1].any()
    assert torch.equal(tokens[1], several.table.weight[[0, 2]])
    assert torch.equal(several.encode(labels), labels)


def test_a_batch_is_truncated_or_padded(conditioner: ClassConditioner, several: ClassConditioner) -> None:
    assert conditioner.from_batch({"label": torch.tensor([2, 0])}).tolist() == [[2], [0]]
    assert several.from_batch({"labels": torch.tensor([[0, 1, 2], [2, -1, -1]])}).tolist() == [[0, 1], [2, -1]]
    assert several.from_batch({"labels": torch.tensor([[0]])}).tolist() == [[0, -1]]


def test_drop_replaces_the_share_asked_for_and_nothing_else(conditioner: ClassConditioner) -> None:
    labels = torch.arange(3).repeat(4000)[:, None]
    dropped = conditioner.drop(labels, 0.1, torch.Generator().manual_seed(0))
    null = dropped == conditioner.null_index
    assert 0.09 < null.float().mean() < 0.11
    assert torch.equal(dropped[~null], labels[~null])
    assert torch.equal(dropped, conditioner.drop(labels, 0.1, torch.Generator().manual_seed(0)))
    assert torch.equal(conditioner.drop(labels, 0.0), labels)
    assert (conditioner.drop(labels, 1.0) == 3).all()


def test_drop_takes_all_slots_of_a_image(several: ClassConditioner) -> None:
    dropped = several.drop(torch.tensor([[0, 1]]).repeat(200, 1), 0.5, torch.Generator().manual_seed(0))
    assert {tuple(row) for row in dropped.tolist()} == {(0, 1), (3, -1)}


def test_encode_takes_names_indices_and_mixtures(conditioner: ClassConditioner) -> None:
    assert conditioner.encode("seven").tolist() == [[2]]
    assert conditioner.encode(["one", 2, "0"]).tolist() == [[1], [2], [0]]
    assert conditioner.encode(torch.tensor([1, 1])).tolist() == [[1], [1]]
    assert conditioner.encode(torch.tensor(1)).tolist() == [[1]]


def test_a_name_of_digits_is_a_name_first() -> None:
    assert ClassConditioner(2, 4, labels=["1", "0"]).encode(["1", "0"]).tolist() == [[0], [1]]
    assert ClassConditioner(2, 4).encode("1").tolist() == [[1]]


def test_a_name_with_a_plus_is_a_name_first() -> None:
    assert ClassConditioner(2, 4, labels=["a+b", "c"], max_classes=2).encode(["a+b"]).tolist() == [[0, -1]]


def test_unknown_class_names_the_nearest(conditioner: ClassConditioner) -> None:
    with pytest.raises(UserError, match="unknown class 'Sevn'. Did you mean 'seven'"):
        conditioner.encode(["one", "Sevn"])
    for index in (3, -2, "17"):
        with pytest.raises(UserError, match=r"must be in 0\.\.2"):
            conditioner.encode(index)


def test_more_classes_than_slots_are_refused(conditioner: ClassConditioner, several: ClassConditioner) -> None:
    with pytest.raises(UserError, match="must be 1 to 1 per image"):
        conditioner.encode([["zero", "one"]])
    with pytest.raises(UserError, match="must be 1 to 2 per image"):
        several.encode("zero+one+seven")


def test_examples_are_the_classes_or_what_images_show(conditioner: ClassConditioner, several: ClassConditioner) -> None:
    assert conditioner.examples([]).rows == NAMES
    examples = several.examples([{"labels": [2, 0]}, {"labels": [1]}, {"labels": [2, 0]}, {"labels": []}])
    assert examples.rows == ["seven+zero", "one"]
    assert examples.conditions.tolist() == [[2, 0], [1, -1]]


def test_labels_must_fit_the_classes() -> None:
    for labels in (["a"], ["a", "a"]):
        with pytest.raises(UserError, match="2 different names"):
            ClassConditioner(2, 4, labels=labels)


def test_save_and_load(several: ClassConditioner, tmp_path) -> None:
    several.save_pretrained(tmp_path)
    loaded = load_conditioner(tmp_path)
    assert isinstance(loaded, ClassConditioner)
    assert loaded.labels == NAMES and loaded.max_classes == 2
    assert torch.equal(loaded.table.weight, several.table.weight)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: {"other": state["table.weight"]},
        lambda state: {**state, "more": state["table.weight"].clone()},
        lambda state: {"table.weight": state["table.weight"][:2].clone()},
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_loading_is_strict(conditioner: ClassConditioner, tmp_path, spoil) -> None:
    conditioner.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(spoil(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises((UserError, ValueError)) as caught:
        ClassConditioner.from_pretrained(tmp_path)
    assert isinstance(caught.value, UserError), caught.value
