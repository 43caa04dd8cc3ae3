"""Conditions say what they say, and contexts answer what they hold."""

from dataclasses import replace

import torch

from sedd.model.inputs import Condition, Contexts

TILT = torch.arange(12.0).view(3, 4) + 1


def contexts() -> Contexts:
    return Contexts(torch.zeros(2, 4, 3), torch.zeros(2, 4, 5), TILT)


def condition() -> Condition:
    number = torch.tensor([2, 0, 1, 2])
    cell_type = torch.tensor([0, 1, 1, 1])
    return Condition(number, cell_type, cell_type, torch.zeros(4), torch.zeros_like(number))


def test_the_expected_effect_is_that_of_the_perturbation_whatever_the_type():
    expected = TILT[[2, 0, 1, 2]]

    assert torch.equal(contexts().tilt_of(condition()), expected)


def test_no_effect_is_expected_of_a_perturbation_that_is_not_told():
    hidden = torch.tensor([True, False, True, False])

    found = contexts().tilt_of(condition().with_hidden_perturbations(hidden, 3))

    zero = torch.zeros(4)
    assert torch.equal(found, torch.stack([zero, TILT[0], zero, TILT[2]]))


def test_hiding_perturbations_changes_nothing_else():
    hidden = torch.tensor([True, False, False, True])

    found = condition().with_hidden_perturbations(hidden, 3)

    assert found.perturbation.tolist() == [3, 0, 1, 3]
    told = condition()
    for name in ("cell_type", "label", "log_depth"):
        assert torch.equal(getattr(found, name), getattr(told, name))
    back = replace(found, perturbation=told.perturbation)
    assert back.with_hidden_labels(hidden, 2).label.tolist() == [2, 1, 1, 2]


def test_a_hidden_batch_is_not_told_and_the_rest_is():
    hidden = torch.tensor([True, False, False, True])
    told = replace(condition(), batch=torch.tensor([1, 0, 1, 0]))

    found = told.with_hidden_batches(hidden, 2)

    assert found.batch.tolist() == [2, 0, 1, 2]
    assert found.select(slice(1, 3)).batch.tolist() == [0, 1]
    assert told.as_control().batch.tolist() == [1, 0, 1, 0]
    for name in ("perturbation", "cell_type", "label", "log_depth"):
        assert torch.equal(getattr(found, name), getattr(told, name))
