"""What images tell of decisions: the activation loss's term that makes nets dynamic."""
import copy
import math

import pytest
import torch

from laud_mm.hooks import ActivationHook
from laud_mm.models.losses import ActivationLoss
from laud_mm.models.losses.activation_loss import information

from ..conftest import TINY_T2T

SURE = 30.0


@pytest.mark.parametrize('logits, bits', [
    ([SURE, SURE], 0.0), ([0.0, 0.0], 0.0), ([SURE, -SURE], 1.0),
    ([SURE, -SURE, -SURE, -SURE], 2 - 0.75 * math.log2(3)),
    ([math.log(3), -math.log(3)], 1 - (2 - 0.75 * math.log2(3)))])
def test_information_by_hand(logits, bits):
    assert information(torch.tensor(logits)[:, None]).item() == pytest.approx(bits, abs=1e-4)


def test_decisions_are_driven_apart_and_a_settled_unit_has_a_finite_gradient():
    logits = torch.tensor([[1.0, 100.0], [-0.5, 100.0]], requires_grad=True)
    information(logits).sum().backward()
    assert logits.grad[0, 0] > 0 > logits.grad[1, 0]
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize('paradigm', ['layer', 'spatial', 'channel', ('spatial', 'channel')])
def test_the_term_reaches_every_masker(paradigm, make_net):
    net = make_net(paradigm=paradigm).train()
    images = torch.randn(4, 3, 32, 32)
    net(images)
    for decision in net.record.decisions.values():
        for name, logits in decision.logits().items():
            assert logits.shape == decision.masks()[name].shape
    cost, plain = net.record.cost(), ActivationLoss(0.5)
    with_term = ActivationLoss(0.5, diversity=2.0)
    difference = with_term(cost, 0.5)[0] - plain(cost, 0.5)[0]
    assert 0 < difference.item() <= 2.0
    difference.backward()
    assert all(p.grad.abs().sum() > 0 for masker in net.maskers()
               for name, p in masker.named_parameters() if 'weight' in name)
    copy.deepcopy(net)
    net.eval()(images)
    assert not any(decision.logits() for decision in net.record.decisions.values())


def test_the_hook_hands_diversity_on_and_what_cannot_be_is_refused(make_net):
    assert ActivationHook(diversity=0.25).loss.diversity == 0.25
    with pytest.raises(ValueError, match='diversity must be a number >= 0, got -1'):
        ActivationLoss(0.5, diversity=-1)
    net = make_net(TINY_T2T, paradigm='head').train()
    net(torch.randn(2, 3, 64, 64))
    with pytest.raises(ValueError, match='diversity must be 0 for a backbone'):
        ActivationLoss(0.5, diversity=1.0)(net.record.cost(), 0.0)
