"""The analytic predictor: sane, complete and clear about bad input."""
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laud_mm.latency import AnalyticPredictor, known_devices, load_hardware
from laud_mm.latency.kernels import busiest_share
from laud_mm.latency.published import FUSIONS
from laud_mm.latency.sweep import Predictors, Setting, best_granularity, sweep_row, sweep_settings
from laud_mm.specs import Rates, network_spec, regnet_spec, resnet_spec, t2t_vit_spec

FALL = 0.98  # tiles quantise: a total may fall by 2 %
PARADIGMS = ('layer', 'channel', 'spatial', 'both')
_predictors = {}


def predictor(device, published=False, precision='fp32'):
    key = device, published, precision
    if key not in _predictors:
        _predictors[key] = AnalyticPredictor(device, precision, published)
    return _predictors[key]


def total_ms(predictor, spec, rate, batch):
    return predictor.predict(spec, rate, batch).latency_per_image_ms * batch


@st.composite
def networks(draw, published=False):
    """(build, size, width): build(size, width) makes the spec of a random network."""
    kind = draw(st.sampled_from(('resnet', 'regnet', 't2t')))
    size = draw(st.integers(33, 260)), draw(st.integers(33, 260))
    if kind == 't2t':
        paradigm = draw(st.sampled_from(('token', 'head', 'layer', ('token', 'head', 'layer'))))
        return lambda size, width: t2t_vit_spec(
            dict(embed_dims=width * 4, num_layers=2, num_heads=4,
                 feedforward_channels=width * 12), size, paradigm=paradigm), size, 64
    paradigm = draw(st.sampled_from(PARADIGMS[:3] if published else PARADIGMS))
    kwargs = dict(paradigm=paradigm, channel_granularity=draw(st.sampled_from((1, 2, 4, 8))),
                  spatial_granularity=tuple(draw(st.integers(1, 9)) for _ in range(4)))
    if kind == 'resnet':
        return lambda size, width: resnet_spec(50, size, base_channels=width, stem_channels=64,
                                               **kwargs), size, draw(st.sampled_from((16, 32, 64)))
    arch = dict(depths=(1, 2, 1, 1), group_widths=8)
    return lambda size, width: regnet_spec(dict(arch, widths=tuple(width * i for i in (
        1, 2, 4, 8))), size, **kwargs), size, 48


DEVICES = st.sampled_from(('V100', 'RTX3090', 'RTX3060', 'TX2', 'Nano', 'H200', 'CPU'))
RATES = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans(), DEVICES, RATES, RATES, st.integers(1, 200), st.integers(1, 60))
def test_latency_rises_with_rate_and_batch(data, published, device, a, b, batch, more):
    build, size, width = data.draw(networks(published))
    spec, model = build(size, width), predictor(device, published)
    low, high = sorted((a, b))
    assert total_ms(model, spec, high, batch) >= FALL * total_ms(model, spec, low, batch)
    assert total_ms(model, spec, a, batch + more) >= FALL * total_ms(model, spec, a, batch)


@settings(max_examples=60, deadline=None)
@given(st.data(), DEVICES, RATES, st.sampled_from((1, 2, 8, 128)), st.integers(1, 12),
       st.sampled_from((8, 16, 24)))
def test_latency_rises_with_resolution_and_channels(data, device, rate, batch, pixels, channels):
    build, size, width = data.draw(networks())
    model = predictor(device)
    small = total_ms(model, build(size, width), rate, batch)
    assert total_ms(model, build((size[0] + pixels, size[1]), width), rate, batch) >= FALL * small
    assert total_ms(model, build(size, width + channels), rate, batch) >= FALL * small


@pytest.mark.parametrize('device', ['V100', 'TX2', 'H200'])
@pytest.mark.parametrize('network', ['resnet50', 'regnety_400mf', 't2t_vit_14'])
@pytest.mark.parametrize('paradigm', ['layer', 'channel', 'spatial', 'token', 'head'])
def test_everything_on_without_masker_is_the_static_net(device, network, paradigm):
    transformer = network.startswith('t2t')
    if (paradigm in ('token', 'head')) != transformer and paradigm != 'layer':
        pytest.skip(f'{network} has no {paradigm} skipping')
    spec = network_spec(network, paradigm=paradigm)
    report = AnalyticPredictor(device).predict(spec, [None] * len(spec.blocks), 128)
    parts = ('conv1', 'conv2', 'conv3', 'se', 'add', 'downsample', 'attn.qkv', 'attn.mix',
             'attn.proj', 'norm2', 'mlp.fc1', 'mlp.activation', 'mlp.fc2')

    def total_ms(ops):
        return sum(op.latency_ms - op.launch_ms for op in ops if op.name.endswith(parts))
    dynamic = sum(total_ms(block.ops) for block in report.blocks)
    static = sum(total_ms(block.static_ops) for block in report.blocks)
    # Patches of spatial skipping are scattered where the static net adds maps.
    assert dynamic == pytest.approx(static, rel=0.35 if paradigm == 'spatial' else 0.001)
    assert report.latency_per_image_ms > report.static_latency_per_image_ms * 0.99


def test_terms_add_up_and_every_level_is_there():
    report = AnalyticPredictor('V100').predict(network_spec('resnet50', paradigm='spatial'), 0.5)
    for block in report.blocks:
        for op in (*block.ops, *block.static_ops):
            assert op.latency_ms == pytest.approx(op.compute_ms + op.memory_ms + op.launch_ms)
    content = json.loads(json.dumps(report.as_dict()))
    assert len(content['blocks']) == 16 and len(content['stages']) == 4
    assert content['latency_per_image_ms'] == pytest.approx(
        (sum(op['latency_ms'] for b in content['blocks'] for op in b['ops'])
         + sum(op['latency_ms'] for op in content['outside'])) / report.batch)
    assert sum(s['latency_per_image_ms'] for s in content['stages']) == pytest.approx(
        content['blocks_latency_per_image_ms'])
    conv = next(op for op in content['blocks'][0]['static_ops'] if op['name'].endswith('conv2'))
    assert conv['tile'] and all(side >= 1 for side in conv['tile'])


def test_rates_per_block_by_name_and_recorded():
    import numpy as np
    spec = network_spec('resnet50', paradigm='layer')
    model, names = AnalyticPredictor('V100'), [block.name for block in spec.blocks]
    same = model.predict(spec, 0.25).latency_per_image_ms
    recorded = Rates(layer=np.array([0.0, 0.0, 0.0, 1.0]))
    for rates in ([0.25] * 16, dict.fromkeys(names, 0.25), [recorded] * 16):
        assert model.predict(spec, rates).latency_per_image_ms == pytest.approx(same)
    first = model.predict(spec, {names[0]: 0.0})
    assert first.blocks[0].rate == 0 and first.blocks[1].rate == 1


@pytest.mark.parametrize('fusion', FUSIONS)
def test_a_fusion_saves_time(fusion):
    spec = network_spec('resnet101', paradigm='spatial')
    def predict(fusions):
        return AnalyticPredictor('V100', published=True, fusions=fusions).predict(
            spec, 0.5).latency_per_image_ms
    fused, apart = predict(FUSIONS), predict([f for f in FUSIONS if f != fusion])
    assert apart > fused if fusion != 'masker_conv1' else apart >= fused


def test_lower_precision_is_faster_where_there_are_matrix_units():
    spec = network_spec('resnet50', paradigm='layer')
    times = [AnalyticPredictor('H200', p).predict(spec, 0.5).latency_per_image_ms
             for p in ('fp32', 'tf32', 'fp16')]
    assert times[0] > times[1] > times[2]


def test_larger_batches_cost_less_per_image():
    spec = network_spec('resnet50', paradigm='layer')
    times = [AnalyticPredictor('V100', published=True).predict(spec, 0.5, b).latency_per_image_ms
             for b in (1, 8, 64, 128, 256)]
    assert times == sorted(times, reverse=True)
    assert times[-1] == pytest.approx(times[-2], rel=0.03)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(1, 6), st.floats(0.05, 0.95))
def test_busiest_share_is_the_expected_maximum(groups, tiles, rate):
    import numpy as np
    rng = np.random.default_rng(0)
    drawn = (rng.random((20000, tiles, groups)) < rate).mean(2).max(1).mean()
    share = busiest_share(np.array([2.0 * groups]), 2, rate, 2 * groups * tiles)
    assert share[0] == pytest.approx(drawn, abs=0.02)


def test_a_patch_larger_than_the_map_is_the_map():
    model = AnalyticPredictor('V100')
    large = model.predict(network_spec('resnet50', paradigm='spatial', spatial_granularity=64), 1)
    whole = model.predict(network_spec('resnet50', paradigm='spatial',
                                       spatial_granularity=(56, 28, 14, 7)), 1)
    assert large.latency_per_image_ms == pytest.approx(whole.latency_per_image_ms, rel=0.01)


def test_best_granularity_is_the_finest_of_the_fast():
    predictors, setting = Predictors(), Setting('resnet101', 'spatial', 0.5, 'V100')
    choice, rows = best_granularity(predictors, setting)
    assert len(choice) == 4
    chosen = predictors.predict(Setting('resnet101', 'spatial', 0.5, 'V100', granularity=choice))
    finest = predictors.predict(Setting('resnet101', 'spatial', 0.5, 'V100',
                                        granularity=(1, 1, 1, 1)))
    assert chosen.latency_per_image_ms <= finest.latency_per_image_ms
    for stage, value in enumerate(choice, 1):
        own = {r['granularity']: r['latency_per_image_ms'] for r in rows if r['stage'] == stage}
        assert own[value] <= 1.02 * min(own.values())


def test_sweep_covers_all_combinations_once():
    settings = sweep_settings(['resnet50'], ['layer', 'spatial'], [0.2, 0.8], ['V100', 'TX2'],
                              granularities=[(4, 4, 2, 1), (8, 4, 7, 1)])
    assert len(settings) == 2 * 2 + 2 * 2 * 2  # granularity means nothing to layer skipping
    row = sweep_row(Predictors().predict(settings[-1]))
    assert row['device'] == 'TX2' and row['granularity'] == '8-4-7-1'
    assert 0 < row['flops_fraction'] < 1


# Bad input.

def test_unknown_device_lists_the_known():
    with pytest.raises(ValueError, match='device must be one of .*H200.*V100.*V99'):
        AnalyticPredictor('V99')


@pytest.mark.parametrize('rate', [-0.1, 1.5, 'half', True])
def test_rate_outside_its_range(rate):
    with pytest.raises(ValueError, match='rate must be a number from 0 to 1, got'):
        AnalyticPredictor('V100').predict(network_spec('resnet50', paradigm='layer'), rate)


@pytest.mark.parametrize('rates, message', [
    ([0.5], 'one number or 16'), ({'layer9.0': 0.5}, 'must name blocks'),
    ([Rates(layer=2.0)] * 16, r'rate \(layer\) must be')])
def test_rates_that_do_not_fit(rates, message):
    with pytest.raises(ValueError, match=message):
        AnalyticPredictor('V100').predict(network_spec('resnet50', paradigm='layer'), rates)


@pytest.mark.parametrize('make, message', [
    (lambda: network_spec('resnet50', paradigm='spatial', spatial_granularity=0),
     'spatial_granularity must be'),
    (lambda: network_spec('resnet18'), 'network must be one of'),
    (lambda: t2t_vit_spec('t2t_vit_14', paradigm='spatial'), 'paradigm must be one of'),
    (lambda: AnalyticPredictor('V100', precision='bf16'), r'precision \(V100\) must be one of'),
    (lambda: AnalyticPredictor('V100', precision='fp16', published=True), "must be 'fp32'"),
    (lambda: AnalyticPredictor('V100', published=True, fusions=['all']),
     'fusions must be one of'),
    (lambda: AnalyticPredictor('V100', fusions=['scatter_add']), 'left out unless published'),
    (lambda: AnalyticPredictor('V100').predict(network_spec('resnet50'), 1, 0),
     'batch must be a positive int'),
    (lambda: best_granularity(Predictors(), Setting('resnet50', 'layer', 0.5, 'V100')),
     "paradigm must be 'spatial' or 'channel'")], ids=range(9))
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The hardware table.

@pytest.mark.parametrize('device', known_devices())
def test_every_field_of_the_table_has_unit_and_source(device):
    from laud_mm.latency.hardware import DATA
    content = json.loads((DATA / f'{device}.json').read_text())
    assert content['title']
    for field in content['fields'].values():
        assert field['unit'] and field['source'] and field['value'] > 0
    hardware = load_hardware(device.lower())
    assert hardware.name == device
    report = AnalyticPredictor(hardware).predict(network_spec('resnet50', paradigm='layer'), 0.5)
    assert 0 < report.ratio < 1


def test_a_device_of_ones_own(tmp_path):
    fields = dict(engines=10, lanes=64, clock_ghz=1.0, bandwidth_gb_s=100, fp16_tflops=5)
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps(dict(fields={k: dict(value=v, unit='', source='me')
                                            for k, v in fields.items()})))
    hardware = load_hardware(str(path))
    assert hardware.name == 'mine' and hardware.precisions == ('fp32', 'fp16')


@pytest.mark.parametrize('fields, message', [
    (dict(engines=10), 'missing fields: bandwidth_gb_s, clock_ghz, lanes'),
    (dict(engines=10, lanes=1, clock_ghz=1, bandwidth_gb_s=1, cores=3), 'unknown fields: cores'),
    (dict(engines=1.5, lanes=1, clock_ghz=1, bandwidth_gb_s=1), 'engines must be a positive int'),
    (dict(engines=1, lanes=-1, clock_ghz=1, bandwidth_gb_s=1), 'lanes must be a positive')])
def test_a_device_file_that_is_wrong(tmp_path, fields, message):
    path = tmp_path / 'mine.json'
    path.write_text(json.dumps(dict(fields={k: dict(value=v) for k, v in fields.items()})))
    with pytest.raises(ValueError, match=message):
        load_hardware(str(path))


@pytest.mark.parametrize('text', ['', '[]', '{"fields": 3}', '{"fields": {"lanes": 3}}'])
def test_a_device_file_that_is_none(tmp_path, text):
    path = tmp_path / 'mine.json'
    path.write_text(text)
    with pytest.raises(ValueError, match='must be a JSON file with fields'):
        load_hardware(str(path))
