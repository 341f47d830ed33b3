"""Op specs count what torch runs and what the papers report."""
import pytest
import torch

from laud_mm.models.backbones import LAUDResNet
from laud_mm.specs import Rates, dynamic_flops, resnet_spec

# Published multiply-adds at 224x224 (torchvision's model table), without the classifier.
PUBLISHED_GFLOPS = {50: 4.09, 101: 7.80, 152: 11.51}


@pytest.mark.parametrize('depth', PUBLISHED_GFLOPS)
def test_static_flops_are_the_published_ones(depth):
    assert resnet_spec(depth).static_flops / 1e9 == pytest.approx(PUBLISHED_GFLOPS[depth],
                                                                   rel=0.01)


@pytest.mark.parametrize('size', [(224, 224), (800, 1216)])
def test_static_flops_agree_with_mmengines_counter(size):
    from mmengine.analysis import FlopAnalyzer
    net = LAUDResNet(50, paradigm=None, execution='masked').eval()
    counter = FlopAnalyzer(net, (torch.zeros(1, 3, *size),))
    counted = counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).total()
    assert net.op_specs(size).static_flops == pytest.approx(counted, rel=0.01)


def test_module_and_table_describe_the_same_net():
    kwargs = dict(paradigm='both', spatial_granularity=(8, 4, 7, 1))
    assert LAUDResNet(101, **kwargs).op_specs((200, 304)) == resnet_spec(101, (200, 304), **kwargs)


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
