"""AdaViT's loss against the formula by hand."""
import math
from types import SimpleNamespace

import pytest
import torch

from laud_mm.hooks import ActivationHook
from laud_mm.models.dynamic import Decision, TransformerDecision
from laud_mm.models.losses import AdaViTLoss
from laud_mm.registry import MODELS

from ..conftest import TINY_T2T


def cost_of(*decisions):
    return SimpleNamespace(decisions=decisions, rates=torch.zeros(len(decisions), 2),
                           fraction=torch.tensor([0.5, 0.7]))


def entropy(p):
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


# Two images, two gated blocks of two heads, after a static one.
HEADS = torch.tensor([[[1., 0.], [1., 1.]], [[1., 1.], [0., 0.]]])  # block, image, head
BRANCHES = torch.tensor([[[1., 0.], [0., 0.]], [[1., 1.], [0., 1.]]])
ZERO, TWO = torch.zeros(2, 2), torch.full((2, 2), 2.0)


def test_branches_by_hand():
    loss, fraction = AdaViTLoss(layer_target=0.4)(cost_of(TransformerDecision(), *(
        TransformerDecision(branches=b, branch_logits=ZERO) for b in BRANCHES)), 0.0)
    # Unit means over the images: 0.5, 0 in the first block, 0.5, 1 in the second.
    spread = (0.1 + 0.4 + 0.1 + 0.6) / 4
    expected = 2 * (abs(4 / 8 - 0.4) + 0.1 * spread - 0.1 * math.log(2))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert fraction.item() == pytest.approx(0.6)


def test_heads_by_hand():
    loss, _ = AdaViTLoss(head_target=0.6, weight=1.0)(cost_of(*(
        TransformerDecision(heads=h, head_logits=TWO) for h in HEADS)), 0.0)
    spread = (0.4 + 0.1 + 0.1 + 0.1) / 4  # unit means 1, 0.5; 0.5, 0.5
    gate = 1 / (1 + math.exp(-2))
    expected = abs(5 / 8 - 0.6) + 0.1 * spread - 0.1 * entropy(gate)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_heads_count_only_where_a_branch_of_their_block_runs():
    loss, _ = AdaViTLoss(weight=1.0)(cost_of(*(
        TransformerDecision(heads=h, head_logits=ZERO, branches=b, branch_logits=ZERO)
        for h, b in zip(HEADS, BRANCHES))), 0.0)
    # The second image skips the first block, so its two heads there do not count.
    heads = abs(3 / 6 - 0.5) + 0.1 * (0.5 + 0.5 + 0 + 0) / 4
    branches = abs(4 / 8 - 0.5) + 0.1 * (0 + 0.5 + 0 + 0.5) / 4
    assert loss.item() == pytest.approx(heads + branches - 0.2 * math.log(2), rel=1e-5)


def test_tokens_by_hand():
    tokens = torch.zeros(2, 2, 19)  # block, image, patch token; the class token makes 20
    tokens[0, 0, :9] = 1
    tokens[1] = 1
    loss, _ = AdaViTLoss(token_target=0.5)(
        cost_of(*(TransformerDecision(tokens=t) for t in tokens)), 0.0)
    expected = 2 * (((10 + 1 + 20 + 20) / 80 - 0.5)**2 + (0.1 - 1 / 20))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_nothing_counts_where_every_branch_is_off():
    masks = [TransformerDecision(heads=h, head_logits=ZERO, branches=b * 0, branch_logits=ZERO)
             for h, b in zip(HEADS.requires_grad_(), BRANCHES)]
    loss, _ = AdaViTLoss(weight=1.0)(cost_of(*masks), 0.0)
    assert loss.item() == pytest.approx(2 * (0.5 + 0.05 - 0.1 * math.log(2)), rel=1e-5)
    loss.backward()
    assert (HEADS.grad == 0).all()


def test_the_entropy_term_pulls_gates_towards_undecided():
    logits = torch.tensor([[2.0, -1.0]], requires_grad=True)
    cost = cost_of(TransformerDecision(branches=torch.tensor([[1., 0.]]), branch_logits=logits))
    AdaViTLoss(weight=1.0)(cost, 0.0)[0].backward()
    # d(-0.1 H / 2) / d logit = 0.05 * logit * p * (1 - p)
    p = torch.sigmoid(logits.detach())
    torch.testing.assert_close(logits.grad, 0.05 * logits.detach() * p * (1 - p))


def test_gradients_reach_the_maskers(make_net):
    net = make_net(TINY_T2T, paradigm=('token', 'head', 'layer')).train()
    net(torch.randn(4, 3, 64, 64))
    AdaViTLoss()(net.record.cost(), 0.0)[0].backward()
    for masker in net.maskers():
        assert all(p.grad.abs().max() > 0 for p in masker.parameters())
    assert net.encoder[0].mlp.fc2.weight.grad is not None


@pytest.mark.parametrize('targets', [dict(token_target=0.7), dict(head_target=0.4),
                                     dict(layer_target=0.3)], ids=str)
def test_it_brings_the_rates_to_their_targets(make_net, targets):
    name, target = next(iter(targets.items()))
    paradigm = name.split('_')[0]
    net = make_net(TINY_T2T, paradigm=paradigm).train()
    maskers = [p for m in net.maskers() for p in m.parameters()]
    optimizer, loss, x = torch.optim.Adam(maskers, 0.1), AdaViTLoss(**targets), \
        torch.randn(32, 3, 32, 32)
    rates = []
    for _ in range(80):
        net(x)
        cost = net.record.cost()
        optimizer.zero_grad()
        loss(cost, 0.0)[0].backward()
        optimizer.step()
        rates.append(cost.mean_rate.item())
    assert rates[0] > 0.85
    assert sum(rates[-20:]) / 20 == pytest.approx(target, abs=0.08)


@pytest.mark.parametrize('kwargs, message', [
    (dict(head_target=1.5), 'head_target must be a number from 0 to 1, got 1.5'),
    (dict(layer_target=-1), 'layer_target must be a number from 0 to 1, got -1'),
    (dict(token_target='half'), "token_target must be a number from 0 to 1, got 'half'"),
    (dict(weight=-1), 'weight must be a number >= 0, got -1')])
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AdaViTLoss(**kwargs)
    with pytest.raises(ValueError, match=message):
        ActivationHook(loss=dict(type='laud_mm.AdaViTLoss', **kwargs))


def test_it_needs_a_transformer_and_no_flops_target():
    with pytest.raises(ValueError, match='AdaViTLoss needs a backbone that decides on tokens'):
        AdaViTLoss()(cost_of(Decision(layer=torch.ones(2, 1))), 0.0)
    assert isinstance(MODELS.build(dict(type='laud_mm.AdaViTLoss')), AdaViTLoss)
    with pytest.raises(ValueError, match='loss must be None where target is given'):
        ActivationHook(target=0.5, loss=dict(type='laud_mm.AdaViTLoss'))
