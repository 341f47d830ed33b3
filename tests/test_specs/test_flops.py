"""Op specs count what torch runs and what the papers report."""
import pytest
import torch

from laud_mm.models.backbones import LAUDRegNet, LAUDResNet
from laud_mm.specs import (
    BottleneckShape,
    Rates,
    dynamic_flops,
    regnet_spec,
    resnet_spec,
    static_flops,
)

# Published multiply-adds at 224x224 (torchvision's model table), without the classifier.
PUBLISHED_GFLOPS = {
    50: 4.09, 101: 7.80, 152: 11.51, 'regnety_400mf': 0.402, 'regnety_800mf': 0.834,
    'regnety_1.6gf': 1.612, 'regnety_3.2gf': 3.176}


@pytest.mark.parametrize('arch', PUBLISHED_GFLOPS)
def test_static_flops_are_the_published_ones(arch):
    spec = (resnet_spec if isinstance(arch, int) else regnet_spec)(arch)
    assert spec.static_flops / 1e9 == pytest.approx(PUBLISHED_GFLOPS[arch], rel=0.01)


# G multiply-adds that the LAUDNet paper's tables give for the static nets.
PAPERS_GFLOPS = {50: 4.1, 101: 7.8, 'regnety_400mf': 0.40, 'regnety_800mf': 0.83}
# Parameters with the 1000-way classifier, from torchvision's model table.
PUBLISHED_PARAMETERS = {
    50: 25557032, 101: 44549160, 152: 60192808, 'regnety_400mf': 4344144, 'regnety_800mf': 6432512,
    'regnety_1.6gf': 11202430, 'regnety_3.2gf': 19436338}


@pytest.mark.parametrize('arch', PAPERS_GFLOPS)
def test_static_flops_with_the_classifier_are_the_papers(arch):
    spec = (resnet_spec if isinstance(arch, int) else regnet_spec)(arch)
    flops = spec.static_flops + 1000 * spec.blocks[-1].shape.out_channels
    assert flops / 1e9 == pytest.approx(PAPERS_GFLOPS[arch], rel=0.02)


@pytest.mark.parametrize('arch', PUBLISHED_PARAMETERS)
def test_static_parameters_are_the_published_ones(arch):
    with torch.device('meta'):
        net = (LAUDResNet if isinstance(arch, int) else LAUDRegNet)(arch, paradigm=None)
    classifier = 1000 * (net.blocks()[-1].shape.out_channels + 1)
    assert sum(p.numel() for p in net.parameters()) + classifier == PUBLISHED_PARAMETERS[arch]


@pytest.mark.parametrize('backbone, arch, size', [
    (LAUDResNet, 50, (224, 224)), (LAUDResNet, 50, (800, 1216)),
    (LAUDRegNet, 'regnety_400mf', (224, 224))])
def test_static_flops_agree_with_mmengines_counter(backbone, arch, size):
    from mmengine.analysis import FlopAnalyzer
    net = backbone(arch, paradigm=None, execution='masked').eval()
    counter = FlopAnalyzer(net, (torch.zeros(1, 3, *size),))
    counted = counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
    assert net.op_specs(size).static_flops == counted['conv'] + counted['linear']


def test_module_and_table_describe_the_same_net():
    kwargs = dict(paradigm='both', spatial_granularity=(8, 4, 7, 1))
    assert LAUDResNet(101, **kwargs).op_specs((200, 304)) == resnet_spec(101, (200, 304), **kwargs)
    for arch in ('regnety_800mf', dict(widths=16, depths=(1, 2, 2, 1), group_widths=(8, 4, 8, 1))):
        net = LAUDRegNet(arch, **kwargs)
        assert net.op_specs((200, 304)) == regnet_spec(arch, (200, 304), **kwargs)
        assert all(net.get_submodule(b.shape.name) in net.blocks()
                   for b in net.op_specs((64, 64)).blocks)


def test_excitation_costs_two_linear_layers_once_per_image():
    kwargs = dict(in_channels=8, width=16, out_channels=16, groups=4, paradigms='both')
    plain, excited = (BottleneckShape('b', 0, se_channels=n, **kwargs).op_specs((7, 9))
                      for n in (0, 3))
    assert static_flops(excited) - static_flops(plain) == 2 * 3 * 16
    new = [op for op in excited if op not in plain]
    assert [op.name for op in new] == ['b.se.pool', 'b.se.fc1', 'b.se.fc2', 'b.se.scale']
    assert dynamic_flops(new, Rates(patch=0.1, channel=0.5)) == 3 * 16


def test_groups_must_divide_the_width():
    with pytest.raises(ValueError, match='groups must divide the bottleneck width, got 3 for wid'):
        BottleneckShape('b', 0, 8, 16, 16, groups=3)


@pytest.mark.parametrize('paradigm, rates, expected', [
    ('layer', Rates(layer=0.5), 0.53), ('channel', Rates(channel=0.5, channel_pair=0.25), 0.41)])
def test_rate_half_of_resnet101_gives_the_methods_fractions(paradigm, rates, expected):
    spec = resnet_spec(101, paradigm=paradigm)
    flops = sum(dynamic_flops(b.ops, rates) for b in spec.blocks) + dynamic_flops(spec.stem,
                                                                                 Rates())
    assert flops / spec.static_flops == pytest.approx(expected, abs=0.01)


def test_specs_need_no_torch():
    import subprocess
    import sys
    code = 'import sys, laud_mm.specs; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
