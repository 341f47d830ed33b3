"""Any arguments: valid ones run, invalid ones raise ValueError with the name of the field."""
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laud_mm.models.backbones import LAUDRegNet, LAUDResNet, LAUDT2TViT

from ..conftest import TINY_REGNET, TINY_T2T

QUICK = settings(max_examples=25, deadline=None, derandomize=True,
                 suppress_health_check=list(HealthCheck))
WRONG = st.sampled_from([0, -1, 2.5, 'x', (), (1, 2), True])
FOUR = st.one_of(st.integers(1, 8), st.tuples(*[st.integers(1, 8)] * 4))
PARADIGM = st.sampled_from([None, 'layer', 'channel', 'spatial', 'both'])
PARADIGMS = st.one_of(PARADIGM, st.tuples(*[PARADIGM] * 4))
COMMON = dict(
    paradigm=(PARADIGMS, st.sampled_from(['rows', 3, ('rows',), ['layer'] * 5])),
    spatial_granularity=(FOUR, st.sampled_from([0, -2, 1.5, 'x', (4, 0, 2, 1), (4, 4)])),
    channel_granularity=(st.sampled_from([1, 2, 4, (1, 2, 4, 8)]),
                         st.sampled_from([0, 1.5, 'x', (2, 2), (2, 0, 2, 2)])),
    frozen_stages=(st.integers(-1, 4), st.sampled_from([-2, 5, 'x'])),
    out_indices=(st.sampled_from([(0,), (3,), (0, 1, 2, 3), [1, 3]]),
                 st.sampled_from([(), (4,), (-1,), 3, 'x'])),
    execution=(st.sampled_from(['auto', 'masked', 'skipping']), st.sampled_from(['fast', None])),
    norm_cfg=(st.just(dict(type='BN')), st.sampled_from([dict(type='GN'), dict(), 'BN'])),
    conv_cfg=(st.sampled_from([None, dict(type='Conv')]), st.just(dict(type='DCNv2'))))
RESNET = dict(COMMON, depth=(st.just(50), st.sampled_from([18, 51, 'x'])),
              style=(st.sampled_from(['pytorch', 'caffe']), st.just('tensorflow')),
              deep_stem=(st.booleans(), st.just('x')), avg_down=(st.booleans(), st.just(2)))
REGNET = dict(COMMON, arch=(st.just(TINY_REGNET), st.just('regnety_1mf')),
              se_pool=(st.just('computed'), st.just('none')))
T2T = dict(
    arch=(st.just(TINY_T2T), st.sampled_from(['t2t_vit_1', dict(embed_dims=24)])),
    paradigm=(st.sampled_from([None, 'token', 'head', 'layer', ('token', 'head', 'layer')]),
              st.sampled_from(['spatial', ('token', 'x')])),
    token_dim=(st.sampled_from([8, 16]), WRONG.filter(lambda v: v not in (True,))),
    out_type=(st.sampled_from(['cls_token', 'featmap', 'avg_featmap', 'raw']), st.just('x')),
    drop_rate=(st.floats(0, 0.5), st.sampled_from([-0.1, 1.5, 'x'])),
    out_indices=(st.sampled_from([-1, (0,), (0, 2)]), st.sampled_from([(), (3,), 'x'])),
    execution=COMMON['execution'])
NETS = {'resnet': (LAUDResNet, RESNET, dict(base_channels=8, depth=50)),
        'regnet': (LAUDRegNet, REGNET, dict(arch=TINY_REGNET)),
        't2t': (LAUDT2TViT, T2T, dict(arch=TINY_T2T, img_size=32, token_dim=16))}
parametrize = pytest.mark.parametrize('name', NETS)


@parametrize
@QUICK
@given(data=st.data())
def test_valid_arguments_run(name, data):
    cls, fields, base = NETS[name]
    chosen = data.draw(st.sets(st.sampled_from(sorted(fields)), max_size=4))
    arguments = {**base, **{field: data.draw(fields[field][0], label=field) for field in chosen}}
    net = cls(**arguments).eval()
    with torch.no_grad():
        outputs = net(torch.rand(1, 3, 33, 40))
    assert len(outputs) == len(net.out_indices)
    assert all(torch.isfinite(y).all() for y in outputs)


@parametrize
@QUICK
@given(data=st.data())
def test_an_invalid_argument_is_named(name, data):
    cls, fields, base = NETS[name]
    field = data.draw(st.sampled_from(sorted(fields)))
    value = data.draw(fields[field][1], label=field)
    with pytest.raises(ValueError) as error:
        cls(**{**base, field: value})
    assert field in str(error.value), f'{field}={value!r}: {error.value}'
