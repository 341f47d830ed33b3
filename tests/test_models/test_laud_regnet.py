"""LAUDRegNet as a backbone: torchvision's keys, its excitation, arguments, freezing, folding."""
import copy
import re

import pytest
import torch
from torch import nn

from laud_mm.models.backbones import LAUDRegNet
from laud_mm.models.dynamic import SqueezeExcitation, override_decisions
from laud_mm.registry import MODELS
from laud_mm.specs.regnet import ARCHS

from ..conftest import TINY_REGNET


@pytest.mark.parametrize('arch', ARCHS)
def test_static_part_has_torchvisions_keys_and_values(arch):
    torchvision = pytest.importorskip('torchvision')
    name = arch.replace('regnety', 'regnet_y').replace('.', '_')
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    ours = LAUDRegNet(arch, paradigm=None).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert (missing, unexpected) == ([], ['fc.weight', 'fc.bias'])
    x = torch.randn(1, 3, 64, 50)
    for ours.execution in ('masked', 'skipping'):
        with torch.no_grad():
            expected = theirs.stem(x)
            for out, stage in zip(ours(x), theirs.trunk_output):
                expected = stage(expected)
                assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_maskers_add_their_own_keys_only(make_net):
    static, dynamic = (make_net(TINY_REGNET, paradigm=p).state_dict() for p in (None, 'both'))
    assert set(static) <= set(dynamic)
    added = set(dynamic) - set(static)
    assert added and all(re.match(r'trunk_output\.block\d\.block\d-\d\.masker\.', k) for k in added)


@pytest.mark.parametrize('kwargs, message', [
    (dict(arch='regnetx_400mf'), "arch must be one of 'regnety_400mf', .*got 'regnetx_400mf'"),
    (dict(arch=400), "arch must be one of 'regnety_400mf', .*or a dict with widths.*got 400"),
    (dict(arch=dict(widths=8)), 'arch must be one of .*or a dict with widths, depths'),
    (dict(arch=dict(TINY_REGNET, stride=2)), 'arch must be .*a dict with widths, depths'),
    (dict(arch=dict(TINY_REGNET, depths=(1, 2))), r'arch.depths must be 4 positive.*got \(1, 2\)'),
    (dict(arch=dict(TINY_REGNET, group_widths=6)), 'arch.group_widths must divide.*6 for width 16'),
    (dict(arch=dict(TINY_REGNET, se_ratio=2)), 'arch.se_ratio must be a number from 0 to 1, got 2'),
    (dict(paradigm='pixel'), "paradigm must be one of 'layer', 'spatial', 'channel'.*got 'pixel'"),
    (dict(spatial_granularity=(4, 0, 2, 1)), 'spatial_granularity must be 4 positive ints'),
    (dict(paradigm='channel', channel_granularity=5), 'channel_granularity must divide'),
    (dict(masker=dict(channel='rnn')), "masker.channel must be one of 'mlp'.*got 'rnn'"),
    (dict(out_indices=(4,)), r'out_indices must be stage indices from 0 to 3, got \(4,\)'),
    (dict(execution='sparse'), "execution must be one of 'auto', 'masked', 'skipping', got"),
    (dict(se_pool='max'), "se_pool must be one of 'computed', 'dense', got 'max'"),
    (dict(se_pool='dense', paradigm='spatial'), "needs execution='masked', got 'auto'"),
    (dict(norm_cfg=dict(type='GN', num_groups=8)), 'norm_cfg.type must be one of BN'),
], ids=lambda v: str(v) if isinstance(v, dict) else '')
def test_bad_arguments_name_the_field_and_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LAUDRegNet(**dict(dict(arch=TINY_REGNET), **kwargs))


def test_builds_by_scoped_type():
    net = MODELS.build(dict(type='laud_mm.LAUDRegNet', arch='regnety_400mf'))
    assert isinstance(net, LAUDRegNet)


def test_init_starts_with_nearly_every_unit_on_and_empty_residuals():
    net = LAUDRegNet(TINY_REGNET, paradigm='both').eval()
    net.init_weights()
    assert all(b.f['c'][1].weight.abs().max() == 0 for b in net.blocks())
    with torch.no_grad():
        net(torch.rand(2, 3, 64, 64))
    assert net.record.cost().mean_rate > 0.95


def block_of(net):
    return net.stages()[1][1]


CHANGES = {
    'excitation in place': lambda net: block_of(net).f['se'].fc1.weight.mul_(-2),
    'new parameter': lambda net: setattr(block_of(net).f['se'].fc2, 'bias', nn.Parameter(
        block_of(net).f['se'].fc2.bias + 2)),
    'grouped convolution': lambda net: block_of(net).f['b'][0].weight.mul_(1.5),
    'shortcut': lambda net: net.stages()[0][0].proj[1].running_var.add_(1),
    'stem': lambda net: net.stem[1].bias.add_(1),
    'data, then eval': lambda net: (block_of(net).f['se'].fc2.weight.data.mul_(-3), net.eval()),
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_fold_is_never_stale(make_net, change):
    net, x = make_net(TINY_REGNET, paradigm=None, execution='skipping'), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = net(x)[-1]
        CHANGES[change](net)
        after = net(x)[-1]
        net.execution = 'masked'
        expected = net(x)[-1]
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(after, before, rtol=1e-4)


def test_copies_share_nothing(make_net):
    net, x = make_net(TINY_REGNET, paradigm='layer'), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = net(x)[-1]
        twin = copy.deepcopy(net)
        assert torch.equal(twin(x)[-1], before)
        block_of(twin).f['se'].fc2.bias.sub_(9)
        assert not torch.equal(twin(x)[-1], before)
        assert torch.equal(net(x)[-1], before)


@pytest.mark.parametrize('paradigm', ['layer', 'both'])
def test_activation_checkpointing_changes_nothing(make_net, paradigm):
    net = make_net(TINY_REGNET, paradigm=paradigm, dtype=torch.float64, norm_eval=True).train()
    results = []
    for with_cp in (False, True):
        for block in net.blocks():
            block.with_cp = with_cp
        net.zero_grad()
        torch.manual_seed(1)
        outputs = net(torch.linspace(-1, 1, 2 * 3 * 48**2, dtype=torch.float64).view(2, 3, 48, 48))
        (sum(y.sum() for y in outputs) + net.record.cost().fraction.sum()).backward()
        results.append([p.grad for p in net.parameters()])
    for plain, checkpointed in zip(*results):
        torch.testing.assert_close(plain, checkpointed)


def test_excitation_takes_its_means_over_the_computed_positions():
    module, y = SqueezeExcitation(6, 2), torch.rand(2, 6, 5, 7)
    positions = torch.rand(2, 5, 7) < 0.4
    means = torch.stack([image[:, on].mean(1) for image, on in zip(y, positions)])
    scales = torch.sigmoid(module.fc2(torch.relu(module.fc1(means[:, :, None, None]))))
    torch.testing.assert_close(module(y, positions), y * scales)
    torch.testing.assert_close(module(y, torch.ones(2, 5, 7)), module(y))


@pytest.mark.parametrize('paradigm', ['layer', 'channel', 'spatial', 'both'])
def test_gradients_are_finite_where_nothing_is_computed(make_net, paradigm):
    net = make_net(TINY_REGNET, paradigm=paradigm).train()
    with override_decisions(net, lambda _, decision: decision.map(lambda mask: mask * 0)):
        outputs = net(torch.rand(2, 3, 64, 64))
    (sum(y.sum() for y in outputs) + net.record.cost().fraction.sum()).backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert len(gradients) == len(list(net.parameters()))
    assert all(g.isfinite().all() for g in gradients)


def test_dense_pooling_is_another_net_and_refuses_to_skip(make_net):
    x, nets = torch.rand(1, 3, 64, 64), {}
    for se_pool in ('computed', 'dense'):
        torch.manual_seed(0)
        nets[se_pool] = make_net(TINY_REGNET, paradigm='spatial', spatial_granularity=1,
                                 se_pool=se_pool, execution='masked')

    def every_other_column(_, decision):
        patches = torch.zeros_like(decision.patches)
        patches[..., ::2] = True
        return decision.map(lambda _: patches)
    with torch.no_grad():
        outputs = []
        for net in nets.values():
            with override_decisions(net, every_other_column):
                outputs.append(net(x)[0])
        assert not torch.allclose(*outputs)
        nets['dense'].execution = 'skipping'
        with pytest.raises(RuntimeError, match="se_pool='dense'.*use execution='masked'"):
            nets['dense'](x)
        with nets['dense'].as_static():
            nets['dense'](x)  # nothing is skipped, so there is nothing to refuse
