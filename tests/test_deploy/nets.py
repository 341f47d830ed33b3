"""Small networks of every family, and how they are compared."""
import pytest
import torch

from laud_mm import deploy
from laud_mm.export import largest_difference

from ..test_export import SMALL, build

DEPLOYED = ('LAUDResNet', 'LAUDRegNet')
NETS = [pytest.param(name, paradigm, id=f'{name}-{paradigm}')
        for name in DEPLOYED for paradigm in SMALL[name][1]]
# Batch, height and width, in turn; odd sizes among them.
SIZES = ((1, 48, 56), (3, 65, 34), (2, 96, 64), (1, 33, 80))


def images(batch, height, width, seed=0):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def run(net, x):
    """Outputs and decisions of a skipping network, as a deployed one returns them."""
    with torch.no_grad():
        outputs = net(x)
    return outputs, {f'{block}.{name}': mask
                     for block, decision in net.record.decisions.items()
                     for name, mask in decision.masks().items()}


def assert_equal(net, deployed, sizes=SIZES, tolerance=1e-4):
    """A deployed network, with decisions, gives what the skipping one gives; rates seen."""
    rates = []
    for seed, size in enumerate(sizes):
        x = images(*size, seed)
        (expected, masks), (found, own) = run(net, x), deployed(x.clone())
        assert largest_difference(found, expected) <= tolerance
        assert [y.stride() for y in found] == [y.stride() for y in expected]
        assert own.keys() == masks.keys()
        assert all(torch.equal(own[key], mask) for key, mask in masks.items())
        rates += [mask.float().mean().item() for mask in masks.values()]
    assert not rates or 0 < sum(rates) / len(rates) < 1  # there was something to decide


def deployed_pair(name, paradigm, **kwargs):
    net = build(name, paradigm)
    return net, deploy(net, with_decisions=True, **kwargs)
