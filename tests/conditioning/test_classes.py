"""Class labels to context tokens, the null token, and the names that a person gives."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from unetdiff.conditioning import ClassConditioner
from unetdiff.errors import UserError

NAMES = ["zero", "one", "seven"]


@pytest.fixture
def conditioner() -> ClassConditioner:
    torch.manual_seed(0)
    return ClassConditioner(3, 8, tokens=2, labels=NAMES)


def test_tokens_are_the_rows_of_the_table(conditioner: ClassConditioner) -> None:
    context = conditioner(torch.tensor([2, 0]))
    assert context.shape == (2, 2, 8)
    assert torch.equal(context[0].flatten(), conditioner.table.weight[2])
    assert torch.equal(context[1, 1], conditioner.table.weight[0, 8:])


def test_null_is_the_row_after_the_last_class(conditioner: ClassConditioner) -> None:
    assert conditioner.null_index == 3
    assert torch.equal(conditioner.null(4), conditioner(torch.full((4,), 3)))
    assert not torch.equal(conditioner.null(1), conditioner(torch.tensor([2])))


def test_drop_replaces_the_share_asked_for_and_nothing_else(conditioner: ClassConditioner) -> None:
    labels = torch.arange(3).repeat(4000)
    dropped = conditioner.drop(labels, 0.1, torch.Generator().manual_seed(0))
    null = dropped == conditioner.null_index
    assert 0.09 < null.float().mean() < 0.11
    assert torch.equal(dropped[~null], labels[~null])
    assert torch.equal(dropped, conditioner.drop(labels, 0.1, torch.Generator().manual_seed(0)))
    assert torch.equal(conditioner.drop(labels, 0.0), labels)
    assert (conditioner.drop(labels, 1.0) == 3).all()


def test_encode_takes_names_indices_and_mixtures(conditioner: ClassConditioner) -> None:
    assert conditioner.encode("seven").tolist() == [2]
    assert conditioner.encode(["one", 2, "0"]).tolist() == [1, 2, 0]
    assert conditioner.encode(torch.tensor([1, 1])).tolist() == [1, 1]


def test_a_name_of_digits_is_a_name_first() -> None:
    assert ClassConditioner(2, 4, labels=["1", "0"]).encode(["1", "0"]).tolist() == [0, 1]
    assert ClassConditioner(2, 4).encode("1").tolist() == [1]


def test_unknown_class_names_the_nearest(conditioner: ClassConditioner) -> None:
    with pytest.raises(UserError, match="unknown class 'Sevn'; did you mean 'seven'"):
        conditioner.encode(["one", "Sevn"])
    for index in (3, -1, "17"):
        with pytest.raises(UserError, match="classes are 0 to 2"):
            conditioner.encode(index)


def test_labels_must_fit_the_classes() -> None:
    for labels in (["a"], ["a", "a"]):
        with pytest.raises(UserError, match="2 different names"):
            ClassConditioner(2, 4, labels=labels)


def test_save_and_load(conditioner: ClassConditioner, tmp_path) -> None:
    conditioner.save_pretrained(tmp_path)
    loaded = ClassConditioner.from_pretrained(tmp_path)
    assert loaded.labels == NAMES
    assert torch.equal(loaded.table.weight, conditioner.table.weight)


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
