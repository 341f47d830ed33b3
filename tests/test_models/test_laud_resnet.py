"""LAUDResNet as a backbone: keys, arguments, freezing, checkpointing, folding."""
import copy
import pickle

import pytest
import torch
from torch import nn

from laud_mm.checkpoints import convert_file
from laud_mm.checkpoints.architecture import infer_backbone
from laud_mm.models.backbones import LAUDRegNet, LAUDResNet, LAUDT2TViT
from laud_mm.models.dynamic import force_rate
from laud_mm.models.dynamic.run_table import RUN_TABLE
from laud_mm.registry import MODELS

from ..conftest import TINY_REGNET, randomize_norms


@pytest.mark.parametrize('depth', [50, 101, 152])
def test_static_part_has_torchvisions_keys_and_values(depth):
    torchvision = pytest.importorskip('torchvision')
    theirs = getattr(torchvision.models, f'resnet{depth}')(weights=None).double().eval()
    ours = LAUDResNet(depth, paradigm=None).double().eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert (missing, unexpected) == ([], ['fc.weight', 'fc.bias'])
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
        for index, out in enumerate(ours(x)):
            expected = getattr(theirs, f'layer{index + 1}')(expected)
            assert (out - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize('style', ['pytorch', 'caffe'])
def test_static_net_equals_mmdets(style):
    resnet = pytest.importorskip('mmdet.models.backbones').ResNet
    kwargs = dict(base_channels=8, style=style, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2))
    theirs = resnet(50, **kwargs).double()
    theirs.eval()
    ours = LAUDResNet(50, paradigm=None, **kwargs).double().eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 75, 101, dtype=torch.float64)
    with torch.no_grad():
        for out, expected in zip(ours(x), theirs(x)):
            assert (out - expected).abs().max() <= 1e-9 * expected.abs().max()


@pytest.mark.parametrize('framework', ['mmdet', 'mmpretrain'])
@pytest.mark.parametrize('kwargs', [dict(deep_stem=True), dict(avg_down=True),
                                    dict(deep_stem=True, avg_down=True, strides=(1, 2, 2, 1))],
                         ids=['deep_stem', 'avg_down', 'both'])
def test_variants_load_the_frameworks_weights(framework, kwargs, tmp_path):
    resnet = pytest.importorskip(f'{framework}.models.backbones').ResNet
    theirs = randomize_norms(resnet(50, base_channels=64, out_indices=(0, 1, 2, 3), **kwargs))
    theirs.eval()
    torch.save(theirs.state_dict(), tmp_path / 'theirs.pth')
    x = torch.randn(2, 3, 75, 101)
    for paradigm in (None, 'spatial'):
        ours = LAUDResNet(50, paradigm=paradigm, init_cfg=dict(
            type='Pretrained', checkpoint=str(tmp_path / 'theirs.pth')), **kwargs)
        ours.init_weights()
        with torch.no_grad(), ours.eval().as_static():
            for out, expected in zip(ours(x), theirs(x)):
                assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()
    found = infer_backbone(ours.state_dict())
    assert {k: found[k] for k in ('deep_stem', 'avg_down')} == {
        k: kwargs.get(k, False) for k in ('deep_stem', 'avg_down')}
    done = convert_file('mmpretrain', tmp_path / 'theirs.pth', tmp_path / 'ours.pth')
    assert set(done.state_dict) == {k for k in ours.state_dict() if '.masker.' not in k}
    back = convert_file('laud', tmp_path / 'ours.pth', tmp_path / 'back.pth', target='mmpretrain')
    if framework == 'mmpretrain' and 'strides' not in kwargs:  # which no weights tell
        assert {k.removeprefix('backbone.') for k in back.state_dict} == set(theirs.state_dict())


@pytest.mark.parametrize('cls, kwargs', [(LAUDResNet, dict(depth=50)),
                                         (LAUDRegNet, dict(arch='regnety_400mf')),
                                         (LAUDT2TViT, dict(arch='t2t_vit_14'))])
def test_arguments_that_ask_for_nothing_are_taken(cls, kwargs, tmp_path):
    cls(**kwargs, pretrained=None, dcn=None, stage_with_dcn=(False,) * 4, plugins=None,
        deep_stem=False, avg_down=False)
    for field, value in (('dcn', dict(type='DCN')), ('plugins', [dict(cfg=dict())]),
                         ('stage_with_dcn', (False, True, True, True)), ('pretrained', 0)):
        with pytest.raises(ValueError, match=f'{field} must be .* for {cls.__name__}, got'):
            cls(**kwargs, **{field: value})
    with pytest.raises(TypeError, match="unexpected keyword argument 'paradim'"):
        cls(**kwargs, paradim='layer')
    net = cls(**kwargs, pretrained='none.pth')
    assert net.init_cfg == dict(type='Pretrained', checkpoint='none.pth')
    with pytest.raises(ValueError, match='pretrained must be None, or a checkpoint without init'):
        cls(**kwargs, pretrained='none.pth', init_cfg=dict(type='Kaiming', layer='Conv2d'))


def test_maskers_add_their_own_keys_only(make_net):
    static, dynamic = make_net(paradigm=None), make_net(paradigm='both')
    added = set(dynamic.state_dict()) - set(static.state_dict())
    assert set(static.state_dict()) <= set(dynamic.state_dict())
    assert added and all('.masker.' in key for key in added)


@pytest.mark.parametrize('kwargs, message', [
    (dict(depth=18), r'depth must be one of \(26, 50, 101, 152\).*bottleneck.*got 18'),
    (dict(paradigm='pixel'), "paradigm must be one of 'layer', 'spatial', 'channel'.*got 'pixel'"),
    (dict(paradigm=('layer', 'layer')), 'paradigm must be one for all stages, or a list of 4'),
    (dict(spatial_granularity=(4, 0, 2, 1)),
     r'spatial_granularity must be 4 positive ints.*got \(4, 0, 2, 1\)'),
    (dict(spatial_granularity=(4, 4)), 'spatial_granularity must be 4'),
    (dict(channel_granularity=2.5), 'channel_granularity must be 4 positive ints'),
    (dict(paradigm='channel', channel_granularity=3), 'channel_granularity must divide.*width 64'),
    (dict(masker=dict(channel='rnn')), "masker.channel must be one of 'mlp'.*got 'rnn'"),
    (dict(masker=dict(chanel='mlp')), 'masker must have keys among channel.*got chanel'),
    (dict(masker=dict(reduction=0)), 'masker.reduction must be a positive int, got 0'),
    (dict(execution='sparse'), "execution must be one of 'auto', 'masked', 'skipping', got"),
    (dict(out_indices=3), 'out_indices must be stage indices from 0 to 3, got 3'),
    (dict(norm_cfg=dict(type='BN', affine=False)), 'norm_cfg.type must be one of BN.*affine'),
    (dict(out_indices=(4,)), r'out_indices must be stage indices from 0 to 3, got \(4,\)'),
    (dict(frozen_stages=5), 'frozen_stages must be an int from -1 to 4, got 5'),
    (dict(num_stages=5), 'num_stages must be an int from 1 to 4, got 5'),
    (dict(style='tensorflow'), "style must be one of 'pytorch', 'caffe'"),
    (dict(norm_cfg=dict(type='GN', num_groups=8)), 'norm_cfg.type must be one of BN'),
    (dict(conv_cfg=dict(type='DCNv2')), 'conv_cfg must be None or'),
], ids=lambda v: str(v) if isinstance(v, dict) else '')
def test_bad_arguments_name_the_field_and_what_is_allowed(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LAUDResNet(**dict(dict(depth=50), **kwargs))


def test_builds_by_scoped_type_without_custom_imports():
    from mmengine.registry import MODELS as ROOT_MODELS
    for registry in (ROOT_MODELS, MODELS):
        net = registry.build(dict(type='laud_mm.LAUDResNet', depth=50, base_channels=8))
        assert isinstance(net, LAUDResNet)


def test_auto_is_masked_in_training_and_skipping_in_evaluation(make_net):
    class Clock:
        def __init__(self):
            self.steps = []

        def run(self, step, run):
            self.steps.append(step)
            RUN_TABLE[step.kind](run, step)
    net, x = make_net(frozen_stages=1), torch.rand(2, 3, 64, 64)
    for mode in (True, False):
        with net.executing(clock=Clock()) as own:
            clock = Clock()
            with own.executing(clock=clock):
                net.train(mode)(x)
        blocks = sum(step.kind == 'rows1x1_add' for step in clock.steps)
        assert blocks == (0 if mode else 16)


def test_skipping_refuses_to_train(make_net):
    net = make_net(execution='skipping').train()
    with pytest.raises(RuntimeError, match="execution='skipping' runs in evaluation only"):
        net(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 3])
@pytest.mark.parametrize('arch, stem', [(50, ('conv1', 'bn1')), (TINY_REGNET, ('stem',))],
                         ids=['resnet50', 'regnet'])
def test_frozen_stages_freeze_weights_and_statistics(make_net, arch, stem, frozen_stages):
    net = make_net(arch, frozen_stages=frozen_stages).train()
    frozen = [getattr(net, name) for name in stem] if frozen_stages >= 0 else []
    frozen += net.stages()[:max(frozen_stages, 0)]
    inside = {id(p) for m in frozen for n, p in m.named_parameters() if 'masker' not in n}
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad == (id(parameter) not in inside), name
    norms = {id(m) for f in frozen for m in f.modules() if isinstance(m, nn.BatchNorm2d)}
    assert all(m.training == (id(m) not in norms)
               for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_fresh_maskers_of_frozen_stages_train_and_loaded_ones_freeze(make_net):
    net = make_net(frozen_stages=1).train()
    masker = net.layer1[0].masker
    assert masker.layer.training and masker.layer.conv.weight.requires_grad
    assert not net.maskers_are_frozen()
    static_only = {k: v for k, v in net.state_dict().items() if 'masker' not in k}
    net.load_state_dict(static_only, strict=False)
    assert not net.train().maskers_are_frozen()
    net.load_state_dict(net.state_dict())
    assert net.train().maskers_are_frozen()
    assert not masker.layer.training and not masker.layer.conv.weight.requires_grad


def test_a_masker_that_loads_half_way_counts_as_fresh(make_net):
    coarse, fine = (make_net(paradigm='channel', channel_granularity=g) for g in (2, 1))
    fine.load_state_dict({k: v for k, v in coarse.state_dict().items() if '.fc2.' not in k},
                         strict=False)
    assert not any(masker.loaded for masker in fine.maskers())
    coarse.load_state_dict(coarse.state_dict())
    assert all(masker.loaded for masker in coarse.maskers())


def test_a_second_init_leaves_a_trained_net_alone(make_net):
    net = make_net()
    net.init_weights()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    before = copy.deepcopy(net.state_dict())
    net.init_weights()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_norm_eval_keeps_statistics_and_trains_weights(make_net):
    net = make_net(norm_eval=True).train()
    before = net.layer2[0].bn1.running_mean.clone()
    net(torch.rand(2, 3, 64, 64))
    assert torch.equal(net.layer2[0].bn1.running_mean, before)
    assert net.layer2[0].bn1.weight.requires_grad and net.layer2[0].masker.layer.training


@pytest.mark.parametrize('paradigm', ['layer', 'both'])
def test_activation_checkpointing_changes_nothing(make_net, paradigm):
    net = make_net(paradigm=paradigm, dtype=torch.float64, norm_eval=True).train()
    results = []
    for with_cp in (False, True):
        for block in net.blocks():
            block.with_cp = with_cp
        net.zero_grad()
        torch.manual_seed(1)
        outputs = net(torch.linspace(-1, 1, 2 * 3 * 48**2, dtype=torch.float64).view(2, 3, 48, 48))
        fraction = net.record.cost().fraction
        (sum(y.sum() for y in outputs) + fraction.sum()).backward()
        assert len(net.record.blocks) == 16
        results.append([fraction.detach(), *(p.grad for p in net.parameters())])
    for plain, checkpointed in zip(*results):
        torch.testing.assert_close(plain, checkpointed)


def test_init_starts_with_nearly_every_unit_on():
    net = LAUDResNet(50, base_channels=16, paradigm='both').eval()
    net.init_weights()
    assert all(b.bn3.weight.abs().max() == 0 for b in net.blocks())  # zero_init_residual
    with torch.no_grad():
        net(torch.rand(2, 3, 64, 64))
    assert net.record.cost().mean_rate > 0.95


def test_init_cfg_pretrained_fills_the_static_part_and_leaves_maskers_fresh(tmp_path, make_net):
    source = make_net(paradigm=None)
    torch.save(source.state_dict(), tmp_path / 'static.pth')
    net = LAUDResNet(50, base_channels=8, frozen_stages=1, init_cfg=dict(
        type='Pretrained', checkpoint=str(tmp_path / 'static.pth')))
    net.init_weights()
    assert torch.equal(net.layer3[1].conv2.weight, source.layer3[1].conv2.weight)
    assert net.layer3[1].masker.layer.conv.bias.tolist() == [5, 0]
    assert not net.maskers_are_frozen()


CHANGES = {
    'in place': lambda net: net.layer2[1].conv2.weight.mul_(1.5),
    'statistics': lambda net: net.layer1[0].bn2.running_var.add_(1),
    'stem': lambda net: net.bn1.bias.add_(1),
    'state dict': lambda net: net.load_state_dict(
        {k: v * 1.1 for k, v in net.state_dict().items()}),
    'new parameter': lambda net: setattr(net.layer1[1].conv1, 'weight', nn.Parameter(
        net.layer1[1].conv1.weight * 2)),
    'data, then eval': lambda net: (net.layer2[0].conv3.weight.data.mul_(2), net.eval()),
    'dtype': lambda net: net.double(),
}


@pytest.mark.parametrize('change', CHANGES)
def test_a_fold_is_never_stale(make_net, change):
    net, x = make_net(paradigm=None, execution='skipping'), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = net(x)[-1]
        CHANGES[change](net)
        x = x.to(net.conv1.weight.dtype)
        after = net(x)[-1]
        net.execution = 'masked'
        expected = net(x)[-1]
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-4)
    if change != 'dtype':
        assert not torch.allclose(after, before, rtol=1e-3)


def test_folds_are_reused_while_nothing_changes(make_net):
    block = make_net().layer1[0]
    with torch.no_grad():
        assert block.weights()[0] is block.weights()[0]


@pytest.mark.parametrize('clone', [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))],
                         ids=['deepcopy', 'pickle'])
def test_copies_work_after_a_training_step_and_share_nothing(make_net, clone):
    net, x = make_net().train(), torch.rand(2, 3, 64, 64)
    net(x)
    twin = clone(net).eval()
    net.eval()
    with torch.no_grad():
        assert torch.equal(twin(x)[-1], net(x)[-1])
        twin.conv1.weight.zero_()
        assert not torch.equal(twin(x)[-1], net(x)[-1])


def test_force_rate_turns_on_an_exact_share(make_net):
    net = make_net(paradigm='spatial')
    with torch.no_grad(), force_rate(net, 0.5):
        net(torch.rand(2, 3, 128, 128))
        first = net.record.cost().rates
        net(torch.rand(2, 3, 128, 128))
    assert torch.equal(first, net.record.cost().rates)
    assert torch.allclose(first.mean(1), torch.tensor(0.5), atol=1e-6)


def test_force_rate_holds_over_the_network_where_a_block_is_all_or_nothing(make_net):
    net = make_net(101, paradigm='layer')
    with torch.no_grad(), force_rate(net, 0.5):
        net(torch.rand(1, 3, 64, 64))
    assert 0.3 < net.record.cost().mean_rate < 0.7
    with pytest.raises(ValueError, match='rate must be a number from 0 to 1, got 1.5'):
        force_rate(net, 1.5)


def test_force_rate_takes_a_rate_for_every_block(make_net):
    net = make_net(paradigm='spatial')
    rates = {block.shape.name: 0.25 * (i % 5) for i, block in enumerate(net.blocks())}
    with torch.no_grad(), force_rate(net, rates):
        net(torch.rand(4, 3, 128, 128))
    cost = net.record.cost()
    assert cost.rates.mean(1).tolist() == pytest.approx(list(rates.values()), abs=0.02)
    del rates['layer2.0']
    with pytest.raises(ValueError, match='name every block that decides, got none for layer2.0'):
        force_rate(net, rates)
