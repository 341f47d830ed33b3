"""What every family of networks gives, tested over the registry, a third family among them."""
import json

import numpy as np
import pytest
import torch

from laud_mm.checkpoints.architecture import build_keys, infer_backbone
from laud_mm.latency import AnalyticPredictor
from laud_mm.latency.calibrated import CalibratedPredictor, save_calibration
from laud_mm.latency.measure import device_stamp
from laud_mm.models.dynamic import force_rate, replay
from laud_mm.profiling.calibrate import fit_steps, step_rows
from laud_mm.profiling.step_clock import time_steps
from laud_mm.registry import MODELS
from laud_mm.specs import FAMILIES, NETWORKS, backbone_spec, network_spec
from laud_mm.visualization import save_activation_picture, unit_map
from laud_mm.zoo.entries import Entry
from laud_mm.zoo.figures import figures_of

from . import third_family
from .conftest import TINY_CONVNEXT, TINY_REGNET, TINY_T2T, randomize_norms

SMALL = dict(LAUDResNet=dict(depth=50, base_channels=8), LAUDRegNet=dict(arch=TINY_REGNET),
             LAUDT2TViT=dict(arch=TINY_T2T, img_size=64, token_dim=16, out_type='raw'),
             LAUDConvNeXt=dict(arch=TINY_CONVNEXT, layer_scale_init_value=1.0),
             LAUDPlainNet=dict(depth=3, channels=16))
CASES = [pytest.param(dict(SMALL[name], type=f'laud_mm.{name}', paradigm=paradigm),
                      id=f'{name}-{paradigm}')
         for name, family in FAMILIES.items()
         for paradigm in (*family.paradigms, family.paradigms, None)]
NETS = pytest.mark.parametrize('config', CASES)


def build(config):
    return randomize_norms(MODELS.build(config)).eval()


def test_the_third_family_is_registered():
    assert FAMILIES['LAUDPlainNet'] is third_family.FAMILY
    assert NETWORKS['plain8'] is third_family.FAMILY
    assert len(FAMILIES) == 5 == len(SMALL)


@NETS
def test_skipping_equals_masked(config):
    net, x = build(config).double(), torch.randn(3, 3, 64, 80, dtype=torch.float64)
    with torch.no_grad():
        with force_rate(net, 0.5), net.executing(mode='skipping'):
            skipped = net(x)
        with replay(net, net.record.decisions), net.executing(mode='masked'):
            masked = net(x)
    for a, b in zip(skipped, masked, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@NETS
def test_the_record_and_the_config_count_the_same_flops(config):
    net = build(config)
    with torch.no_grad(), force_rate(net, 1.0):
        net(torch.randn(2, 3, 64, 80))
    cost, spec = net.record.cost(), backbone_spec(config, (64, 80))
    tail = sum(op.dense_flops for op in spec.tail)
    assert cost.static_flops + tail == spec.static_flops == net.op_specs((64, 80)).static_flops
    assert cost.fraction.min() >= 1  # everything on, and maskers


@NETS
def test_prediction_analytic_and_calibrated(config, tmp_path):
    net, spec = build(config), backbone_spec(config, (64, 80))
    report = AnalyticPredictor('TX2').predict(spec, 0.5, 2)
    assert report.latency_per_image_ms > 0 and len(report.blocks) == len(net.blocks())
    with torch.inference_mode():
        timed = time_steps(net, torch.randn(2, 3, 64, 80), 0.5, warmup=0, repeats=1)
    rows = [row for own in timed for row in step_rows(own)]
    save_calibration(tmp_path / 'here.json', fit_steps(rows, 2), device_stamp('cpu'), 'fp32', [])
    predictor = CalibratedPredictor(tmp_path / 'here.json')
    if any(call.kind not in {row['kind'] for row in rows} for call in spec.outside_calls(2)):
        pytest.skip('the tail of a token net without token skipping is not timed')
    assert predictor.predict(spec, 0.5, 2).latency_per_image_ms > 0


@NETS
def test_pictures(config, tmp_path):
    net = build(config)
    with torch.no_grad(), force_rate(net, 0.5):
        net(torch.randn(2, 3, 64, 80))
    assert all(0 <= np.nanmin(unit_map(b.decision, 0)) <= np.nanmax(unit_map(b.decision, 0)) <= 1
               for b in net.record.blocks)
    path = tmp_path / 'net.png'
    save_activation_picture(path, np.zeros((64, 80, 3), np.uint8), net.record)
    assert path.stat().st_size > 1000


@NETS
def test_zoo_and_checkpoints(config):
    backbone = json.loads(json.dumps({k: v for k, v in config.items() if k != 'paradigm'}))
    backbone['paradigm'] = config['paradigm']
    entry = Entry('config', None, 'digits', 'net', backbone,
                  None if config['paradigm'] is None else 0.6)
    figures = figures_of(entry, {'V100': 'fp32'})
    assert figures.parameters_m > 0 and entry.family == FAMILIES[config['type'][8:]].title
    weights = build(config).state_dict()
    inferred = infer_backbone(weights)
    assert inferred['type'] == config['type']
    own = {k: tuple(v.shape) for k, v in build_keys(dict(
        inferred, **({'arch': config['arch']} if 'arch' in config else {}))).state_dict().items()}
    assert own == {k: tuple(v.shape) for k, v in weights.items()}


@pytest.mark.parametrize('network', NETWORKS)
def test_every_network_has_a_spec_by_its_name(network):
    spec = network_spec(network, (64, 64), NETWORKS[network].paradigms[0])
    assert spec.static_flops > 0


@pytest.mark.parametrize('name', SMALL)
def test_the_static_net_compiles_as_one_graph(name):
    """What skipping is compared with must not be slowed down by what skips."""
    net = build(dict(SMALL[name], type=f'laud_mm.{name}', paradigm=None, execution='masked'))
    x = torch.randn(1, 3, 64, 64)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend='eager', fullgraph=True)
    with torch.no_grad():
        for a, b in zip(compiled(x), net(x), strict=True):
            torch.testing.assert_close(a, b)
