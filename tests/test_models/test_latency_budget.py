"""The activation loss with a budget of predicted time."""
import pytest
import torch

from laud_mm.hooks import ActivationHook
from laud_mm.latency.calibrated import load_predictor
from laud_mm.models.dynamic import ActivationCost, replay
from laud_mm.models.losses import ActivationLoss, LatencyBudget
from laud_mm.models.losses.latency_budget import _hull_slopes

PARADIGMS = ['layer', 'spatial', 'channel', 'both']


def decide(net, images, on):
    """The cost of a pass in which `on` (N,) tells which images have everything on."""
    net(images)
    decisions = {name: own.map(lambda mask: torch.ones_like(mask) * on.view(
        -1, *[1] * (mask.dim() - 1))) for name, own in net.record.decisions.items()}
    with replay(net, decisions):
        net(images)
    return net.record.cost()


@pytest.mark.parametrize('paradigm', PARADIGMS)
@pytest.mark.parametrize('device, batch', [('TX2', 1), ('V100', 16)])
def test_the_value_is_the_predictors(paradigm, device, batch, make_net):
    net = make_net(paradigm=paradigm, num_stages=2, out_indices=(1,)).train()
    budget, predictor = LatencyBudget(device, batch), load_predictor(device)
    network = net.op_specs((64, 64))
    for share in (0.0, 0.5, 1.0):
        cost = decide(net, torch.randn(4, 3, 64, 64), (torch.arange(4) < 4 * share).float())
        if share == 0.5 and paradigm == 'both':
            continue  # half of the images, not half of patches and half of channels
        report = predictor.predict(network, share, batch)
        assert budget.fraction(cost).item() == pytest.approx(report.ratio, rel=1e-3)


def test_the_hull_leads_off_a_plateau_and_skips_bumps():
    x = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert _hull_slopes(x, torch.tensor([0.0, 0.25, 0.5, 0.5, 0.5])).tolist() == [0.5] * 4
    assert _hull_slopes(x, torch.tensor([0.0, 0.5, 0.1, 1.0, 1.1])).tolist() == pytest.approx(
        [0.2, 0.2, 2.0, 2.0])


def test_passes_of_several_sizes_count_by_their_images(make_net):
    net = make_net(paradigm='layer', num_stages=2, out_indices=(1,)).train()
    budget = LatencyBudget('TX2')
    one = decide(net, torch.randn(1, 3, 32, 32), torch.ones(1))
    three = decide(net, torch.randn(3, 3, 96, 64), torch.tensor([1.0, 0.0, 0.0]))
    together = budget.fraction(ActivationCost.together([one, three]))
    assert together.item() == pytest.approx(
        (budget.fraction(one).item() + 3 * budget.fraction(three).item()) / 4)


@pytest.mark.parametrize('paradigm', ['layer', 'spatial'])
def test_maskers_learn_the_budget(paradigm, make_net):
    # So many images that launches do not count.
    net = make_net(paradigm=paradigm, base_channels=16, num_stages=2, out_indices=(1,)).train()
    net.set_temperature(2.0)
    loss = ActivationLoss(0.7, bounds=False, metric='latency', device='V100', batch=512)
    maskers = [p for masker in net.maskers() for p in masker.parameters()]
    optimizer, images, seen = torch.optim.Adam(maskers, 0.05), torch.randn(16, 3, 32, 32), []
    for _ in range(50):
        net(images)
        value, fraction = loss(net.record.cost(), 0.5)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seen.append(fraction.item())
    assert seen[0] > 0.8 and sum(seen[-10:]) / 10 == pytest.approx(0.7, abs=0.08)


def test_what_cannot_be_is_refused(make_net):
    for arguments, message in ((dict(metric='ms'), "metric must be one of 'flops', 'latency'"),
                               (dict(metric='latency'), 'device must be given for metric latency'),
                               (dict(device='TX2'), "device and batch must be None for metric "
                                "flops, got 'TX2' and None"),
                               (dict(metric='latency', device='TX3'), 'TX3')):
        with pytest.raises(ValueError, match=message):
            ActivationLoss(0.5, **arguments)
    net = make_net(paradigm='layer', num_stages=2, out_indices=(1,)).train()
    net(torch.randn(2, 3, 32, 32))  # so small that launches are all that counts
    loss = ActivationHook(target=0.01, metric='latency', device='TX2', batch=1).loss
    with pytest.raises(ValueError, match=r'target must be at least 1\.\d+ of the time predicted'):
        loss(net.record.cost(), 0.0)
