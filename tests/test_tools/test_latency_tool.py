"""tools/latency.py: predict, sweep, measure, calibrate and compare as users type them."""
import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from laud_mm.profiling.bench import BenchSetting, compiled_static, run_precision
from laud_mm.profiling.ceilings import measure_ceilings, share_of_ceiling
from laud_mm.specs import resnet_shapes

from ..conftest import TINY_REGNET

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'latency.py'


def load_tool():
    spec = importlib.util.spec_from_file_location('latency_tool', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*args):
    load_tool().main([str(a) for a in args])


def fails(message, *args):
    with pytest.raises(SystemExit) as error:
        run(*args)
    assert message in str(error.value)


def test_predict_as_typed_imports_no_torch(tmp_path):
    out = tmp_path / 'out.json'
    code = (f'import sys, runpy; sys.argv = {str(TOOL)!r}.split() + sys.argv[1:]; '
            f'runpy.run_path({str(TOOL)!r}, run_name="__main__"); '
            'sys.exit(3 if "torch" in sys.modules else 0)')
    done = subprocess.run(
        [sys.executable, '-c', code, 'predict', '--published', '--network', 'resnet101',
         '--paradigm', 'layer', '--rate', '0.4', '--granularity', '4', '4', '2', '1', '--device',
         'V100', '--batch', '128', '--json', out], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    ratio = (report['blocks_latency_per_image_ms']
             / report['static_blocks_latency_per_image_ms'])
    assert ratio == pytest.approx(0.47, abs=0.01)
    assert len(report['block_latency_per_image_ms']) == 33
    assert report['latency_per_image_ms'] and report['static_latency_per_image_ms']
    assert 'resnet101' in done.stdout and 'V100' in done.stdout


@pytest.mark.parametrize('network, paradigm', [
    ('resnet50', 'channel'), ('regnety_400mf', 'spatial'), ('regnety_800mf', 'both'),
    ('t2t_vit_19', 'token'), ('t2t_vit_19', 'head'), ('resnet50', 'none')])
def test_predict_writes_tables_and_plots(tmp_path, capsys, network, paradigm):
    run('predict', '--network', network, '--paradigm', paradigm, '--device', 'V100', 'TX2',
        '--json', tmp_path / 'a.json', '--csv', tmp_path / 'a.csv', '--plot', tmp_path / 'a.png')
    reports = json.loads((tmp_path / 'a.json').read_text())
    assert [r['device'] for r in reports] == ['V100', 'TX2'] and reports[1]['batch'] == 1
    rows = list(csv.DictReader((tmp_path / 'a.csv').open()))
    total = sum(float(r['latency_ms']) for r in rows
                if r['device'] == 'TX2' and r['net'] == 'dynamic')
    assert total == pytest.approx(reports[1]['latency_per_image_ms'])
    assert (tmp_path / 'a.png').stat().st_size > 1000
    assert paradigm in capsys.readouterr().out or paradigm == 'none'


def test_predict_reads_a_config_and_recorded_rates(tmp_path, capsys):
    config = ROOT / 'configs' / 'faster_rcnn_laud_r50.py'
    run('predict', '--config', config, '--size', '800', '1216', '--device', 'V100',
        '--json', tmp_path / 'half.json')
    half = json.loads((tmp_path / 'half.json').read_text())
    report = dict(blocks=[dict(name=b['name'], rate=1.0 if i % 2 else 0.25)
                          for i, b in enumerate(half['blocks'])])
    (tmp_path / 'val.json').write_text(json.dumps(report))
    run('predict', '--config', config, '--rates', tmp_path / 'val.json', '--device', 'V100',
        '--json', tmp_path / 'own.json')
    own = json.loads((tmp_path / 'own.json').read_text())
    assert [b['rate'] for b in own['blocks']] == [b['rate'] for b in report['blocks']]
    fails('--rates must cover the 33 blocks', 'predict', '--network', 'resnet101', '--paradigm',
          'layer', '--rates', tmp_path / 'val.json', '--device', 'V100')


def test_predict_reads_a_transformers_config(tmp_path):
    config, reports = tmp_path / 't2t.py', {}
    for paradigm in (None, ('token', 'head', 'layer')):
        backbone = dict(type='laud_mm.LAUDT2TViT', arch='t2t_vit_14', paradigm=paradigm)
        config.write_text(f'model = dict(backbone={backbone!r})')
        run('predict', '--config', config, '--device', 'TX2', '--json', tmp_path / 'a.json')
        reports[paradigm] = json.loads((tmp_path / 'a.json').read_text())
    static, dynamic = reports.values()
    # A GPU would wait for the number of tokens: everything is computed there, and masked.
    assert static['ratio'] == 1 < dynamic['ratio'] < 1.2
    assert dynamic['static_latency_per_image_ms'] == static['static_latency_per_image_ms']
    assert dynamic['blocks'][13]['name'] == 'encoder.13'
    assert dynamic['blocks'][13]['rate'] == pytest.approx(0.5**3, rel=0.02)


@pytest.mark.parametrize('preset, extra, rows', [
    ('rate', ('--network', 'resnet50', 'regnety_400mf'), 60),
    ('granularity', (), 28), ('channel_granularity', (), 16), ('batch', (), 27),
    ('fusions', ('--published',), 4), ('channel_masker', (), 2)])
def test_sweeps(tmp_path, preset, extra, rows):
    run('sweep', '--preset', preset, *extra, '--device', 'V100', '--json', tmp_path / 's.json',
        '--csv', tmp_path / 's.csv', '--plot', tmp_path / 's.png')
    found = json.loads((tmp_path / 's.json').read_text())['rows']
    assert len(found) == rows == len(list(csv.DictReader((tmp_path / 's.csv').open())))
    assert (tmp_path / 's.png').stat().st_size > 1000
    if preset == 'fusions':
        latencies = [r['latency_per_image_ms'] for r in found]
        assert latencies == sorted(latencies, reverse=True)


def test_sweep_chooses_granularities(tmp_path, capsys):
    run('sweep', '--best', '--network', 'resnet50', '--paradigm', 'spatial', 'channel', '--rate',
        '0.5', '--device', 'V100', 'TX2', '--json', tmp_path / 's.json')
    best = json.loads((tmp_path / 's.json').read_text())['best']
    assert len(best) == 4 and all(len(b['granularity'].split('-')) == 4 for b in best)


def test_measure(tmp_path):
    run('measure', '--network', 'regnety_400mf', '--paradigm', 'layer', '--size', '64', '64',
        '--repeats', '3', '--warmup', '1', '--json', tmp_path / 'm.json', '--csv',
        tmp_path / 'm.csv', '--plot', tmp_path / 'm.png')
    result = json.loads((tmp_path / 'm.json').read_text())
    row = result['results'][0]
    assert row['p50_ms'] > 0 and row['static_p99_ms'] >= row['static_p50_ms']
    assert len(row['stages']) == 4 and result['stamp']['device'] == 'cpu'
    assert sum(s['p50_ms'] for s in row['stages']) < 3 * row['p50_ms']
    assert row['ratio_to_fastest_static'] == row['ratio_to_static'] > 0


def test_measure_beside_other_runtimes(tmp_path, capsys):
    run('measure', '--network', 'regnety_400mf', '--paradigm', 'layer', '--size', '32', '32',
        '--repeats', '2', '--warmup', '1', '--peers', '--json', tmp_path / 'm.json', '--csv',
        tmp_path / 'm.csv')
    content, printed = json.loads((tmp_path / 'm.json').read_text()), capsys.readouterr().out
    row, = content['results']
    for runtime in ('onnxruntime', 'openvino'):
        if importlib.util.find_spec(runtime):
            assert row[f'{runtime}_fp32_p50_ms'] > 0 and f'{runtime}_fp32' in printed
            assert content['stamp']['runtimes'][runtime]
        else:
            assert f'Not timed: {runtime}' in printed
            assert any(reason.startswith(runtime) for reason in content['missing'])
    assert row['fastest_static'] in row['ratios'] and 'ratio_to_fastest_of_all' in printed


def test_measure_takes_the_backbone_of_a_config(tmp_path):
    run('measure', '--config', ROOT / 'configs' / 'laud_resnet_digits.py', '--size', '48', '48',
        '--repeats', '2', '--warmup', '1', '--json', tmp_path / 'm.json')
    row, = json.loads((tmp_path / 'm.json').read_text())['results']
    assert row['network'] == 'laud_resnet_digits' and row['paradigm'] == 'layer'
    assert row['granularity'] is None and row['p50_ms'] > 0


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('backbone', [
    "type='laud_mm.LAUDResNet', depth=50, base_channels=8, paradigm='spatial'",
    "type='laud_mm.LAUDRegNet', arch=dict(widths=16, depths=1, group_widths=8)"])
def test_images_have_as_many_channels_as_the_backbone(tmp_path, backbone, channels):
    config = tmp_path / 'few.py'
    config.write_text(f"model = dict(type='Net', net=dict(backbone=dict(in_channels={channels}, "
                      f'{backbone})))')
    for command in (('measure', '--json', tmp_path / 'm.json', '--warmup', '1'),
                    ('plan', '--out', tmp_path / 'plan.json')):
        run(*command, '--config', config, '--size', '32', '32', '--repeats', '1')
    assert json.loads((tmp_path / 'm.json').read_text())['results'][0]['p50_ms'] > 0
    assert json.loads((tmp_path / 'plan.json').read_text())


def test_predict_takes_a_detector_as_its_images_come(tmp_path):
    run('predict', '--config', DETECTOR, '--device', 'V100', 'TX2', '--json', tmp_path / 'p.json',
        '--csv', tmp_path / 'p.csv')
    for report in json.loads((tmp_path / 'p.json').read_text()):
        assert report['batch'] == 1 and report['image_size'] == [800, 1216]
        assert report['network'] == 'faster_rcnn_laud_r50'


@pytest.mark.slow
def test_calibrate_predict_and_compare(tmp_path, capsys):
    cal = tmp_path / 'here.json'
    run('calibrate', '--out', cal, '--nets', '8', '--repeats', '1', '--seconds', '0',
        '--json', tmp_path / 'k.json', '--csv', tmp_path / 'k.csv', '--plot', tmp_path / 'k.png')
    found = json.loads((tmp_path / 'k.json').read_text())
    assert all(row['measured_ms'] > 0 for row in found['steps'])
    held_out = [row for row in found['steps'] if row['held_out']]
    assert found['summary'][-1] == dict(found['summary'][-1], kind='all', steps=len(held_out))
    stamp = json.loads(cal.read_text())['stamp']
    assert stamp['torch'] == torch.__version__ and stamp['threads'] == torch.get_num_threads()

    run('predict', '--network', 'resnet50', '--paradigm', 'layer', '--device', cal, '--json',
        tmp_path / 'p.json')
    report = json.loads((tmp_path / 'p.json').read_text())
    assert report['mode'] == 'calibrated' and report['device'] == 'here'
    # Few steps, measured once, still give the order of magnitude.
    assert 2 < report['static_latency_per_image_ms'] < 2000
    assert all(block['skipping_pays'] in (True, False) for block in report['blocks'])

    run('compare', '--calibration', cal, '--network', 'regnety_400mf', '--paradigm', 'layer',
        '--size', '64', '64', '--repeats', '3', '--warmup', '1', '--json', tmp_path / 'c.json',
        '--plot', tmp_path / 'c.png')
    row = json.loads((tmp_path / 'c.json').read_text())['rows'][0]
    assert row['error'] == pytest.approx(
        row['drift'] * row['predicted_ms'] / row['measured_ms'] - 1)
    assert len(row['stages']) == 4 and all((tmp_path / f'{n}.png').is_file() for n in 'kc')


@pytest.mark.slow
def test_measure_compiles_the_static_net(tmp_path):
    run('measure', '--network', 'regnety_400mf', '--paradigm', 'layer', '--size', '32', '32',
        '--repeats', '2', '--warmup', '1', '--compile', '--json', tmp_path / 'm.json')
    row = json.loads((tmp_path / 'm.json').read_text())['results'][0]
    assert row['compiled_p50_ms'] > 0
    assert row['ratio_to_fastest_static'] >= row['ratio_to_static']


DETECTOR = ROOT / 'configs' / 'faster_rcnn_laud_r50.py'
PREDICT = ('predict', '--network', 'resnet50', '--paradigm', 'layer')


@pytest.mark.parametrize('args, message', [
    ((*PREDICT, '--device', 'V99'), 'device must be one of'),
    ((*PREDICT, '--device', 'V100', '--rate', '1.5'), 'rate must be a number from 0 to 1'),
    ((*PREDICT, '--device', 'V100', '--batch', '0'), 'batch must be a positive int'),
    (('predict', '--paradigm', 'spatial', '--granularity', '0', '--device', 'V100'),
     'spatial_granularity must be'),
    (('predict', '--device', 'V100', '--config', 'no.py'), 'no.py'),
    ((*PREDICT, '--device', 'V100', '--rates', 'no.json'), 'recorded rates must be a JSON report'),
    ((*PREDICT, '--device', 'V100', '--plot', 'x.bmp'), '--plot must end in'),
    (('sweep', '--device', 'V100', '--fusions', 'some'), 'fusions must be one of'),
    (('sweep', '--device', 'V100', '--granularity', '4-x'), '--granularity must be'),
    (('sweep', '--device', 'V100', '--best', '--paradigm', 'layer'), '--best needs'),
    (('measure', '--precision', 'tf32'), "'tf32' needs a CUDA device"),
    (('measure', '--rate', '2'), 'rate must be'),
    (('compare', '--calibration', 'no.json'), 'must be a calibration file'),
    ((*PREDICT, '--device', 'V100', '--size', '0', '224'), '--size must be two positive ints'),
    ((*PREDICT, '--device', 'V100', '--config', DETECTOR), '--network must be left out with'),
    (('measure', '--config', DETECTOR, '--paradigm', 'layer'), '--paradigm must be left out with'),
    (('measure', '--device', 'TX2'), "--device must be a device of torch, such as cpu or cuda, "
                                     "got 'TX2'"),
    (('measure', '--device', 'cuda', '--peers'), '--peers must be left out with --device cuda'),
    (('calibrate', '--out', 'x.json', '--device', 'TX2'), '--device must be a device of torch')])
def test_bad_input_is_named_before_any_work(tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    fails(message, *args)
    assert not list(tmp_path.iterdir())


def test_plan_measures_and_a_backbone_takes_it(tmp_path, capsys):
    from laud_mm.models.backbones import LAUDRegNet
    config = tmp_path / 'tiny.py'
    arch = dict(widths=(16, 24, 32, 40), depths=(1, 2, 1, 1), group_widths=8)
    config.write_text(f'model = dict(backbone=dict(type="laud_mm.LAUDRegNet", arch={arch}, '
                      'out_indices=(0, 1), paradigm="channel"))')
    out = tmp_path / 'plan.json'
    run('plan', '--config', config, '--size', 64, 96, '--batch', 1, 2, '--rate', 0.5, 1,
        '--repeats', 1, '--expected-rate', 0.7, '--out', out)
    assert f'wrote {out}' in capsys.readouterr().out
    plan = LAUDRegNet(arch, paradigm='channel', plan=str(out)).plan
    assert plan.expected_rate == 0.7 and plan.stamp['threads'] == torch.get_num_threads()
    # The second block of stage 2 has a shape of its own.
    assert sorted(case.batch for case in plan.blocks) == [1] * 5 + [2] * 5
    assert all(times.rates == (0.5, 1.0) for times in plan.blocks.values())


@pytest.mark.parametrize('args, message', [
    (['--rate', 0], 'rates must be positive, got [0.0]'),
    (['--rate', 1.5], 'rates must be a number from 0 to 1, got 1.5'),
    (['--expected-rate', 7], 'expected_rate must be a number from 0 to 1, got 7'),
    (['--paradigm', 'token'], 'paradigm must be'), (['--batch', 0], 'batch must be a positive')])
def test_plan_names_bad_input_before_any_work(tmp_path, args, message):
    fails(message, 'plan', '--network', 'resnet50', '--out', tmp_path / 'plan.json', *args)
    assert not (tmp_path / 'plan.json').exists()


def test_the_benchmark_of_the_operations_times_all_of_them(tmp_path):
    from laud_mm import ops
    subprocess.run([sys.executable, ROOT / 'benchmarks' / 'ops.py', '--stage', '4', '--batch', '1',
                    '--rate', '0.5', '--repeats', '1', '--json', tmp_path / 'ops.json', '--plot',
                    tmp_path / 'ops.png'], check=True, stdout=subprocess.DEVNULL)
    content = json.loads((tmp_path / 'ops.json').read_text())
    # Those of integers, and those that GPUs alone have kernels for, are timed in whole nets; the
    # rest are the library's own functions.
    others = {name for name in ops.OPERATIONS if 'int8' in name or 'quantize' in name}
    others |= {'conv_map', 'max_pool', 'average_pool', 'rectify_', 'conv1x1_shortcut',
               'sums_mask'}
    assert {row['op'] for row in content['results']} == set(ops.OPERATIONS) - others
    assert all(row['kernel_ms'] > 0 and row['reference_ms'] > 0 for row in content['results'])
    assert all(row['moved_mb'] > 0 and row['of_ceiling'] > 0 for row in content['results'])
    gflop = {row['op']: row['gflop'] for row in content['results'] if not row['variant']}
    assert gflop['masker_conv1x1'] == pytest.approx(2 * (49 * 2048 * 512 + 49 * 2048) / 1e9,
                                                    rel=0.01)
    assert min(content['stamp']['ceilings'].values()) > 0
    assert content['fused_masker'][0]['ratio_to_separate'] > 0
    assert (tmp_path / 'ops.png').stat().st_size > 1000


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_the_benchmark_of_the_operations_says_that_there_is_no_gpu():
    done = subprocess.run([sys.executable, ROOT / 'benchmarks' / 'ops.py', '--device', 'cuda',
                           '--precision', 'fp16'], capture_output=True, text=True)
    assert done.returncode == 1 and '--device must be cpu where torch finds no GPU' in done.stderr


def test_a_share_of_the_ceiling_is_of_what_takes_longest():
    ceilings = dict(bandwidth_gb_s=1000.0, tflops=100.0)
    assert share_of_ceiling(2.0, 1e9, 0, ceilings) == pytest.approx(0.5)  # 1 ms of bytes
    assert share_of_ceiling(2.0, 1e6, 1e11, ceilings) == pytest.approx(0.5)  # 1 ms of products
    found = measure_ceilings('cpu', repeats=1)
    assert found['bandwidth_gb_s'] > 0.5 and found['tflops'] > 1e-3


def test_the_benchmark_of_backbones_takes_the_rates_of_a_trained_network(tmp_path):
    shapes = [shape for stage in resnet_shapes(50, paradigm='layer') for shape in stage]
    gates = {shape.name: float(i % 2) for i, shape in enumerate(shapes)}
    (tmp_path / 'val.json').write_text(json.dumps(dict(blocks=[
        dict(name=name, rate=rate) for name, rate in gates.items()])))
    program = [sys.executable, ROOT / 'benchmarks' / 'backbones.py', '--network', 'resnet50',
               '--paradigm', 'layer', '--size', '32', '32', '--batch', '1', '--repeats', '1',
               '--no-compile', '--no-peers', '--json', tmp_path / 'out.json',
               '--plot', tmp_path / 'out.png']
    subprocess.run([*program, '--gates', tmp_path / 'val.json'], check=True,
                   stdout=subprocess.DEVNULL)
    row, = json.loads((tmp_path / 'out.json').read_text())['results']
    assert [rates['layer'] for rates in row['block_rates']] == list(gates.values())
    assert (tmp_path / 'out.png').stat().st_size > 1000
    failed = subprocess.run([*program, '--gates', tmp_path / 'out.png'], capture_output=True)
    assert failed.returncode and b'must be a JSON report of LatencyHook' in failed.stderr


TINY = dict(type='laud_mm.LAUDRegNet', arch=TINY_REGNET, out_indices=(3,))


def tiny_static(x):
    setting = BenchSetting('tiny', None, 1.0, 1, backbone=TINY)
    return compiled_static(setting, setting.build(), x)


def test_every_network_is_compiled_however_many_came_before():
    x = torch.randn(1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        for _ in range(2):
            assert [tuple(y.shape) for y in tiny_static(x)(x)] == [(1, 48, 1, 1)]


def test_a_compiled_net_that_is_not_compiled_is_refused():
    with torch.compiler.set_stance('force_eager'), torch.no_grad(), \
            pytest.raises(RuntimeError, match='must be one compiled graph, got 0'):
        tiny_static(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize('newer', [False, True])
def test_float32_runs_as_such_whichever_way_tf32_was_asked_for(newer):
    matmul, allows = torch.backends.cuda.matmul, torch.ops.laud_mm_build.allows_tf32
    if newer:
        matmul.fp32_precision = 'tf32'  # from here on `allow_tf32` raises
    else:
        matmul.allow_tf32 = True
    try:
        with run_precision('fp32', 'cpu'):
            assert not allows()
            assert torch.backends.cudnn.conv.fp32_precision != 'tf32'
        assert allows() and torch.backends.cudnn.conv.fp32_precision == 'tf32'
    finally:
        matmul.fp32_precision = 'none'
        matmul.allow_tf32 = False
