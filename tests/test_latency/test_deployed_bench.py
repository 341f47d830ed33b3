"""A deployed net that is timed decides for as many units as the net beside it."""
import pytest
import torch

from laud_mm.models.dynamic import force_rate
from laud_mm.profiling.bench import BenchSetting, decide_as_often, measure_setting

CNNS = ('resnet50', 'regnety_400mf')


@pytest.mark.parametrize('batch', [1, 5])
@pytest.mark.parametrize('rate', [0, 0.3, 1])
@pytest.mark.parametrize('paradigm', ['layer', 'spatial', 'channel'])
@pytest.mark.parametrize('network', CNNS)
def test_maskers_decide_for_as_many_units_as_recorded(network, paradigm, rate, batch):
    torch.manual_seed(0)
    net = BenchSetting(network, paradigm, rate, batch, image_size=(64, 64)).build()
    x = torch.randn(batch, 3, 64, 64)
    with torch.no_grad():
        with force_rate(net, rate):
            net(x)
        wanted = net.record.decisions
        decide_as_often(net, x, wanted)
        net(x)
    for name, decision in net.record.decisions.items():
        for kind, mask in decision.masks().items():
            assert mask.sum() == wanted[name].masks()[kind].sum(), (name, kind)


@pytest.mark.slow
def test_a_deployed_net_is_timed_beside_the_others():
    row = measure_setting(BenchSetting('regnety_400mf', 'layer', 0.5, 2, image_size=(64, 64)),
                          warmup=1, repeats=2, deployed=True)
    assert row['deployed_rate'] == pytest.approx(row['realised_rate'])
    assert row['deployed_p50_ms'] > 0 and row['deployed_ratios'].keys() == row['ratios'].keys()
    assert row['deployed_ratio_to_fastest_static'] in row['deployed_ratios'].values()
