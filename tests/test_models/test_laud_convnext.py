"""LAUD-ConvNeXt: equal to torchvision's and mmpretrain's, and skipping what it decides."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from laud_mm import ops
from laud_mm.checkpoints.convert import SOURCES, TARGETS
from laud_mm.latency.calibrated import load_predictor
from laud_mm.models.backbones import ConvNeXtBlock, LAUDConvNeXt
from laud_mm.models.dynamic import force_rate, run_program
from laud_mm.models.dynamic.execution import Execution
from laud_mm.specs import ConvNeXtShape, dynamic_flops, network_spec
from laud_mm.weights import CheckpointError
from laud_mm.weights.layout import add_classifier_prefixes, compare_keys, load_exactly

from ..conftest import TINY_CONVNEXT, randomize_norms
from .test_programs import as_on_a_gpu, assert_same, run_recorded


def lively(net):
    """Weights that all matter; layer scales too."""
    for name, parameter in net.named_parameters():
        if name.endswith(('layer_scale', 'gamma')):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith('bias'):
            nn.init.normal_(parameter, std=0.3)
    net.eval()  # mmpretrain's returns nothing
    return randomize_norms(net)


def torchvision_net():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt
    widths = [*TINY_CONVNEXT['channels'], None]
    return lively(ConvNeXt([CNBlockConfig(a, b, n) for a, b, n in zip(
        widths, widths[1:], TINY_CONVNEXT['depths'])], num_classes=7))


def mmpretrain_net(**kwargs):
    backbones = pytest.importorskip('mmpretrain.models.backbones')
    return lively(backbones.ConvNeXt(dict(TINY_CONVNEXT), **kwargs))


@pytest.mark.parametrize('execution', ['masked', 'skipping'])
def test_the_static_net_is_torchvisions(execution):
    theirs = torchvision_net()
    net = LAUDConvNeXt(TINY_CONVNEXT, paradigm=None, execution=execution).eval()
    found = net.load_state_dict(theirs.state_dict(), strict=False)
    assert not found.missing_keys and set(found.unexpected_keys) == {'fc.weight', 'fc.bias'}
    x = torch.randn(2, 3, 70, 101)
    with torch.no_grad():
        expected = theirs.classifier[0](theirs.avgpool(theirs.features(x))).flatten(1)
        torch.testing.assert_close(net(x)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('means', [True, False])
def test_the_static_net_is_mmpretrains(means):
    settings = dict(out_indices=[0, 2, 3], gap_before_final_norm=means)
    theirs = mmpretrain_net(**settings)
    net = LAUDConvNeXt(TINY_CONVNEXT, paradigm=None, **settings).eval()
    net.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 70, 101)
    with torch.no_grad():
        for a, b in zip(net(x), theirs(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('depth', [9, 27])
def test_layers_are_as_deep_as_mmpretrains(depth):
    arch = dict(depths=[3, 3, depth, 3], channels=[8, 8, 8, 8])
    theirs = pytest.importorskip('mmpretrain.models.backbones').ConvNeXt(arch)
    ours = LAUDConvNeXt(arch, paradigm=None)
    for (name, _), mapped in zip(theirs.named_parameters(), _our_names(theirs), strict=True):
        assert ours.get_layer_depth(f'b.{mapped}', 'b.') == theirs.get_layer_depth(
            f'b.{name}', 'b.'), name
    assert ours.get_layer_depth('head.fc.weight', 'b.') == theirs.get_layer_depth(
        'head.fc.weight', 'b.')


def _our_names(theirs):
    from laud_mm.weights.convnext import adapt_convnext
    weights = {name: parameter.detach() for name, parameter in theirs.named_parameters()}
    return list(adapt_convnext(weights))


@pytest.mark.parametrize('source', ['torchvision', 'mmpretrain'])
def test_weights_go_to_both_and_back(source):
    weights = torchvision_net().state_dict()
    ours = SOURCES['torchvision'](weights)
    exported = TARGETS[source](ours)
    if source == 'torchvision':
        assert {k: v.shape for k, v in exported.items()} == {k: v.shape for k, v in
                                                             weights.items()}
    else:
        own = {f'backbone.{k}': v.shape for k, v in mmpretrain_net().state_dict().items()}
        assert own == {k: v.shape for k, v in exported.items() if k.startswith('backbone.')}
    again = SOURCES[source](exported)
    assert again.keys() == ours.keys()
    assert all(torch.equal(value, again[key]) for key, value in ours.items())
    with pytest.raises(CheckpointError, match=r'1 of \d+ keys are not those of a ConvNeXt'):
        SOURCES[source](dict(exported, surplus=torch.zeros(1)))


def test_a_teacher_takes_torchvisions_file():
    backbone = LAUDConvNeXt(TINY_CONVNEXT, paradigm=None)
    head = nn.ModuleDict(dict(fc=nn.Linear(TINY_CONVNEXT['channels'][-1], 7)))
    network = nn.ModuleDict(dict(backbone=backbone, head=head))
    weights = torchvision_net().state_dict()
    load_exactly(network, add_classifier_prefixes(weights), 'it')
    assert torch.equal(head['fc'].weight, weights['classifier.2.weight'])
    assert torch.equal(backbone.norm3.bias, weights['classifier.0.bias'])
    assert compare_keys(weights, backbone).unexpected == ('fc.weight', 'fc.bias')


def test_a_classifiers_weights_start_a_detectors_backbone(tmp_path):
    file = tmp_path / 'convnext.pth'
    torch.save(torchvision_net().state_dict(), file)
    net = LAUDConvNeXt(TINY_CONVNEXT, out_indices=(0, 1, 2, 3), gap_before_final_norm=False,
                       init_cfg=dict(type='Pretrained', checkpoint=str(file)))
    net.init_weights()
    assert torch.equal(net.norm3.weight, torch.load(file)['classifier.0.weight'])
    assert torch.equal(net.norm0.weight, torch.ones(16))


@pytest.mark.parametrize('network, flops_g', [('convnext_tiny', 4.5), ('convnext_small', 8.7)])
def test_flops_are_the_published(network, flops_g):
    assert network_spec(network).static_flops / 1e9 == pytest.approx(flops_g, abs=0.05)
    skipping = network_spec(network, paradigm='spatial')
    at = sum(dynamic_flops(b.ops, b.expected_rates(0.5)) for b in skipping.blocks)
    assert at / sum(b.ops and dynamic_flops(b.ops, b.expected_rates(1.0)) for b in
                    skipping.blocks) == pytest.approx(0.52, abs=0.02)


def test_the_published_predictor_knows_no_convnext():
    with pytest.raises(ValueError, match='network must be a ResNet, RegNet or T2T-ViT for the'):
        load_predictor('V100', published=True).predict(network_spec('convnext_tiny'), 0.5)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_block_runs_its_program_and_skips_what_it_masks(data):
    def draw(*values):
        return data.draw(st.sampled_from(values))

    paradigms = draw(('layer',), ('spatial',), ('layer', 'spatial'))
    shape = ConvNeXtShape('block', 0, draw(8, 24), paradigms, data.draw(st.integers(1, 9)))
    block = lively(ConvNeXtBlock(shape, draw(0.0, 1.0))).double()
    n, h, w = (data.draw(st.integers(1, high)) for high in (4, 24, 24))
    x, rate = torch.randn(n, shape.channels, h, w, dtype=torch.float64), draw(0.0, 0.3, 0.7, 1.0)
    with torch.no_grad():
        decision = block.masker(x).map(lambda mask: torch.rand(mask.shape) < rate)
        masked = block.run_masked(x, decision)
        case = block.case(x)
        for route in case.shape.routes(case):
            assert_same(*run_recorded(block, x, decision, route, draw(True, False)))
        own = Execution('skipping', override=lambda *_: decision)
        skipped, *_ = run_program(block, x.clone(), own, block.weights()[0], draw(True, False))
        dense = Execution('auto', override=lambda *_: decision)
        with as_on_a_gpu():
            program = block.case(x).shape.program(block.case(x))
            assert program.break_even == 0  # `auto` computes everything there
            computed, *_ = run_program(block, x.clone(), dense, block.weights()[0])
    limit = 1e-9 * masked.abs().max()
    assert (skipped - masked).abs().max() <= limit and (computed - masked).abs().max() <= limit


def test_gradients_flow_through_masks_and_through_what_skips():
    net = lively(LAUDConvNeXt(TINY_CONVNEXT, paradigm='spatial', drop_path_rate=0.5)).train()
    x = torch.randn(4, 3, 64, 64)
    net(x)[0].sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    with pytest.warns(UserWarning, match='evaluates with gradients on'):
        expected = [net.eval()(x)[0].sum()]
    with torch.no_grad():
        torch.testing.assert_close(net(x)[0].sum(), expected[0], rtol=1e-4, atol=1e-3)


def test_samples_are_dropped_at_their_rate_and_the_mean_stays():
    block = lively(ConvNeXtBlock(ConvNeXtShape('block', 0, 8), 1.0, drop_path_rate=0.25)).train()
    x = torch.randn(1, 8, 6, 6).expand(4000, -1, -1, -1)
    with torch.no_grad():
        y = (block(x) - x).flatten(1)
        kept = y.abs().amax(1) > 0
        assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
        branch = (block.eval()(x[:1]) - x[:1]).flatten(1)
        torch.testing.assert_close(y[kept][:1], branch / 0.75, rtol=1e-4, atol=1e-4)


def test_a_changed_module_is_called_and_not_read_past():
    net = lively(LAUDConvNeXt(TINY_CONVNEXT)).eval()
    net.features[1][0].block[4] = nn.GELU(approximate='tanh')
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), pytest.warns(UserWarning, match='features.1.0 .its layers are not'):
        skipped = net(x)[0]
    with torch.no_grad(), net.executing(mode='masked'):
        torch.testing.assert_close(net(x)[0], skipped, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_types_and_autocast_stay_near(dtype):
    net = lively(LAUDConvNeXt(TINY_CONVNEXT, paradigm='spatial', out_indices=(0, 3),
                              gap_before_final_norm=False))
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad(), force_rate(net, 0.5):
        expected = net(x)
        with torch.autocast('cpu', dtype):
            mixed = net(x)
        halved = net.to(dtype)(x.to(dtype))
    for own in (mixed, halved):
        for y, e in zip(own, expected):
            assert (y.float() - e).abs().max() <= 0.1 * e.abs().max()


@pytest.mark.parametrize('change, message', [
    (dict(arch='huge'), 'arch must be one of'), (dict(arch=dict(depths=[1])), 'arch must be one'),
    (dict(arch=dict(depths=[1, 0], channels=8)), 'arch.depths must be 2 positive ints'),
    (dict(paradigm='channel'), "paradigm must be one of 'layer', 'spatial'"),
    (dict(out_indices=(4,)), 'out_indices must be stage indices from 0 to 3'),
    (dict(drop_path_rate=1.0), 'drop_path_rate must be a number from 0 to 0.99'),
    (dict(layer_scale_init_value=-1.0), 'layer_scale_init_value must be'),
    (dict(use_grn=True), 'use_grn must be False'), (dict(in_channels=0), 'in_channels must be'),
    (dict(spatial_granularity=(4, 0, 2, 1)), 'spatial_granularity must be 4')])
def test_a_bad_argument_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        LAUDConvNeXt(**dict(dict(arch=TINY_CONVNEXT), **change))


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-15), (torch.float32, 4e-7)])
def test_gelu_is_exact(dtype, tolerance):
    """Through layers that pass values on; the torch function in float64 is the measure."""
    if not ops.has_kernel('cpu'):
        pytest.skip('the operations are not compiled')
    values = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -50., 0., 1e4])])
    values = torch.cat([values, values.new_zeros(-len(values) % 16)]).to(dtype)
    rows, eye = values.view(1, -1, 16), torch.eye(16, dtype=dtype)[:, :, None, None]
    area = rows.shape[1]
    out = torch.zeros(1, 16, area, 1, dtype=dtype).contiguous(memory_format=torch.channels_last)
    zeros, (index, count) = torch.zeros(16, dtype=dtype), ops.active_patches(torch.ones(1, 1, 1))
    ops.mlp_add_patches_(out, out.clone(), rows, index, count, eye, zeros, eye, zeros, ops.WHOLE)
    found = out.permute(0, 2, 3, 1).flatten().double()
    exact = torch.nn.functional.gelu(values.double())
    assert ((found - exact).abs() <= tolerance * values.double().abs().clamp(min=1)).all()
