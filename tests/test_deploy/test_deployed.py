"""The deployed form gives the numbers and decisions of the skipping network, at any size."""
import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import laud_mm
from laud_mm.deploy import deploy
from laud_mm.deploy.compiled import CompiledBackbone
from laud_mm.export import largest_difference
from laud_mm.models.backbones import LAUDResNet
from laud_mm.specs import FAMILIES

from ..test_export import SMALL, build
from .nets import DEPLOYED, NETS, SIZES, assert_equal, deployed_pair, images, run


@pytest.mark.parametrize('name, paradigm', NETS)
def test_it_equals_the_skipping_network(name, paradigm):
    net, deployed = deployed_pair(name, paradigm)
    assert_equal(net, deployed)


@pytest.mark.parametrize('paradigm', ['layer', 'spatial', 'channel', 'both', ('layer', 'spatial')])
@pytest.mark.parametrize('settings', [
    dict(deep_stem=True, avg_down=True), dict(style='caffe'), dict(dilations=(2,))],
    ids=lambda s: '-'.join(s))
def test_variants_of_a_resnet_are_equal_too(settings, paradigm, make_net):
    net = make_net(50, paradigm=paradigm, **dict(dict(
        num_stages=1, strides=(2,), dilations=(1,), out_indices=(0,), spatial_granularity=4),
        channel_granularity=2, **settings)) if 'dilations' not in settings else make_net(
            50, paradigm=paradigm, num_stages=1, strides=(1,), out_indices=(0,),
            spatial_granularity=4, channel_granularity=2, **settings)
    for masker in net.maskers():
        for parameter in masker.parameters():
            nn.init.normal_(parameter, std=0.5)
    assert_equal(net, deploy(net, with_decisions=True))


def test_masks_before_norms_are_multiplied_in(make_net):
    net = make_net(50, paradigm='channel', mask_before_norm=True, num_stages=1, strides=(1,),
                   dilations=(1,), out_indices=(0,), channel_granularity=(2,),
                   spatial_granularity=(4,))
    for masker in net.maskers():
        for parameter in masker.parameters():
            nn.init.normal_(parameter, std=0.5)
    assert_equal(net, deploy(net, with_decisions=True))


def test_every_family_is_deployed_or_refused_by_name():
    assert set(FAMILIES) >= set(DEPLOYED)
    for name in SMALL:
        net = build(name, SMALL[name][1][-1])
        if name in (*DEPLOYED, 'LAUDConvNeXt'):
            deploy(net)
        else:
            with pytest.raises(ValueError, match=f'LAUDConvNeXt to be deployed, got {name}'):
                deploy(net)


def test_the_package_is_the_function_and_nothing_in_the_result_is_of_mm():
    deployed = laud_mm.deploy(build('LAUDRegNet', 'both'))
    bases = {base.__module__.split('.')[0] for module in deployed.modules()
             for base in type(module).__mro__}
    assert bases <= {'laud_mm', 'torch', 'builtins'}
    assert not list(deployed.parameters()) and not any(
        b.requires_grad for b in deployed.buffers())


def test_weights_are_packed_once():
    net, deployed = deployed_pair('LAUDResNet', 'layer')
    x = images(*SIZES[0])
    before = deployed(x)[0]
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert all(map(torch.equal, deployed(x)[0], before))
    assert not all(map(torch.equal, net(x), before))


def test_the_input_and_earlier_outputs_are_left_alone():
    deployed = deploy(build('LAUDRegNet', 'layer'))
    x = images(*SIZES[0])
    kept = x.clone()
    first = deployed(x)
    copies = [y.clone() for y in first]
    deployed(-x)
    assert torch.equal(x, kept) and all(map(torch.equal, first, copies))


def test_channels_last_images_give_channels_last_maps():
    net, deployed = deployed_pair('LAUDRegNet', 'layer')
    x = images(*SIZES[1]).contiguous(memory_format=torch.channels_last)
    for y, expected in zip(deployed(x)[0], run(net, x)[0]):
        assert y.stride() == expected.stride()


@pytest.mark.parametrize('name', DEPLOYED)
def test_half_precision_computes_as_asked_and_returns_the_images_type(name):
    net = build(name, None if name == 'LAUDResNet' else 'layer')
    x = images(2, 64, 64)
    with torch.no_grad():
        expected = net(x)
        found = deploy(net, precision='bf16')(x)
        with torch.autocast('cpu', torch.bfloat16):
            asked_outside = deploy(net)(x)
    assert all(y.dtype == torch.float32 for y in found)
    assert 0 < largest_difference(found, expected) < 0.1
    assert largest_difference(asked_outside, expected) < 1e-5  # autocast changes nothing


class Model(nn.Module):
    """A model as mmdet builds it: a backbone, and a head that reads its maps."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.head = backbone, nn.Conv2d(32, 3, 1)

    def forward(self, x):
        return self.head(self.backbone(x)[0])


def test_the_backbone_of_a_model_is_replaced_in_place():
    model = Model(build('LAUDResNet', 'spatial')).eval()
    head, x = model.head, images(*SIZES[0])
    with torch.no_grad():
        expected = model(x)
        assert deploy(model) is model and model.head is head
        assert type(model.backbone).__name__ == 'DeployedBackbone'
        assert torch.allclose(model(x), expected, atol=1e-5)


def test_a_deployed_backbone_stays_what_it_is():
    deployed = deploy(build('LAUDResNet', 'layer'))
    deployed.to('cpu').float()  # asks for nothing
    with pytest.raises(RuntimeError, match='stays torch.float32 on cpu'):
        deployed.half()


@pytest.mark.parametrize('arguments, message', [
    (dict(image_size=(0, 8)), 'image_size must be a positive int, got 0'),
    (dict(image_size=(8,)), 'image_size must be height and width'),
    (dict(batch=0), 'batch must be a positive int, got 0'),
    (dict(precision='int8'), "precision must be one of .* got 'int8'"),
    (dict(tolerance=0.5), 'tolerance must be a number from 0 to 0.499, got 0.5'),
    (dict(plan='missing.json'), 'plan must be a file'),
    (dict(profile='missing.json'), 'profile must be a file')])
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        deploy(build('LAUDResNet', 'layer'), **arguments)


def test_networks_that_cannot_be_deployed_are_named():
    with pytest.raises(ValueError, match='deploy needs a LAUD backbone'):
        deploy(nn.Conv2d(3, 3, 1))
    net = build('LAUDResNet', 'layer')
    with pytest.raises(ValueError, match='with_decisions must be False'):
        deploy(Model(net), with_decisions=True)
    with pytest.raises(ValueError, match='layer1.1 must be as it was built.*has hooks'):
        net.layer1[1].conv2.register_forward_hook(lambda *_: None)
        deploy(net)
    with pytest.raises(ValueError, match='the stem must be as it was built.*training'):
        deploy(LAUDResNet(50, base_channels=4).train())


# All are followed; some are compiled to the end, which takes longer.
@pytest.mark.parametrize('name, paradigm, backend', [
    *(pytest.param(*net.values, 'aot_eager', id=net.id) for net in NETS),
    *(pytest.param(*net, 'inductor', id='-'.join(net) + '-inductor', marks=pytest.mark.slow)
      for net in (('LAUDResNet', 'both'), ('LAUDRegNet', 'layer')))])
def test_one_compiled_graph_serves_all_sizes(name, paradigm, backend):
    net, deployed = deployed_pair(name, paradigm)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = CompiledBackbone(deployed, backend=counter)
    sizes = [(1 + i % 4, 40 + 13 * i % 90, 36 + 7 * i) for i in range(20)]
    assert_equal(net, compiled, sizes)
    assert counter.frame_count == 1


def test_cropped_images_give_maps_in_the_format_of_the_network():
    net, deployed = deployed_pair('LAUDResNet', 'layer')
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = images(2, 64, 80).contiguous(memory_format=memory_format)[..., 4:52]
        for y, expected in zip(deployed(x)[0], run(net, x)[0]):
            assert y.stride() == expected.stride()


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_a_graph_returns_maps_in_the_images_format(memory_format):
    net, deployed = deployed_pair('LAUDResNet', 'layer')
    torch._dynamo.reset()
    compiled = CompiledBackbone(deployed, backend='eager')
    for size in [(1, 48, 64), (3, 64, 40), (2, 56, 56)]:
        x = images(*size).contiguous(memory_format=memory_format)
        expected, found = run(net, x)[0], compiled(x)[0]
        assert largest_difference(found, expected) < 1e-4
        assert all(y.is_contiguous(memory_format=memory_format) for y in found)


def test_each_compiled_network_runs_its_own_graph():
    x, pairs = images(2, 64, 80), []
    for paradigm, with_decisions in (('layer', True), ('layer', False), ('spatial', True)):
        deployed = deploy(build('LAUDResNet', paradigm), with_decisions=with_decisions)
        pairs.append((deployed, CompiledBackbone(deployed, backend='eager')))
        with torch.no_grad():
            pairs[-1][1](x)
    with torch.no_grad():
        for deployed, compiled in reversed(pairs):
            found, expected = (torch.utils._pytree.tree_flatten(one(x))
                               for one in (compiled, deployed))
            assert found[1] == expected[1]
            assert all(map(torch.equal, found[0], expected[0]))


def test_a_copy_of_a_compiled_network_has_weights_of_its_own():
    compiled, x = CompiledBackbone(deploy(build('LAUDResNet', 'layer')), backend='eager'), \
        images(2, 64, 80)
    before = compiled(x)
    changed = copy.deepcopy(compiled)
    for tensor in changed.deployed.stem.buffers():
        tensor.mul_(2)
    assert not all(map(torch.equal, changed(x), before))
    assert all(map(torch.equal, compiled(x), before))
    assert all(map(torch.equal, changed(x), changed.deployed(x)))


def test_torch_compile_makes_one_graph_of_several_images_and_one_of_one():
    net, deployed = deployed_pair('LAUDResNet', 'layer')
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('eager')
    compiled = torch.compile(deployed, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        assert_equal(net, compiled, [(2 + i % 4, 40 + 13 * i % 90, 36 + 7 * i) for i in range(20)])
        assert counter.frame_count == 1
        assert_equal(net, compiled, [(1, 40 + 16 * i, 50) for i in range(5)])
        assert counter.frame_count == 2
