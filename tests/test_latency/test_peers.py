"""The static net in other runtimes: it is the same net, and what is not timed is said."""
import importlib
import json
import time

import pytest
import torch

from laud_mm.commands.latency import measure
from laud_mm.deploy.onnx import OnnxruntimeNet
from laud_mm.export import largest_difference
from laud_mm.latency import measure as timing
from laud_mm.profiling import peers
from laud_mm.profiling.bench import BenchSetting, measure_setting

NEEDED = ('onnx', 'onnxscript', 'onnxruntime', 'openvino')
SETTINGS = {
    'resnet': dict(type='laud_mm.LAUDResNet', depth=50, base_channels=8),
    'regnet': dict(type='laud_mm.LAUDRegNet', arch=dict(widths=16, depths=1, group_widths=8)),
    't2t': dict(type='laud_mm.LAUDT2TViT', paradigm='token', img_size=48, token_dim=16,
                arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=40)),
}


def need(*names):
    for name in names:
        pytest.importorskip(name, reason=f'{name} is not installed: pip install laud-mm[peers]')


def setting(name='regnet', size=48):
    backbone = SETTINGS[name]
    return BenchSetting(name, backbone.get('paradigm', 'layer'), 0.5, 2, None, (size, size),
                        backbone=backbone)


@pytest.mark.parametrize('name', SETTINGS)
def test_every_runtime_runs_the_static_net_with_its_threads(name):
    need(*NEEDED)
    static, x = setting(name).build(paradigm=None, execution='masked'), torch.randn(2, 3, 48, 48)
    found = peers.static_peers(static, x)
    assert {'onnxruntime_fp32', 'openvino_fp32'} <= set(found.nets) == set(found.programs)
    assert ('openvino_bf16' in found.nets) != any('bf16' in m for m in found.missing)
    with torch.no_grad():
        expected = static(x)
    for name, program in found.programs.items():
        program()
        tolerance = 0.1 if name == 'openvino_bf16' else 1e-4
        assert largest_difference(found.nets[name].outputs(), expected) < tolerance
    options = found.nets['onnxruntime_fp32'].session.get_session_options()
    assert options.intra_op_num_threads == torch.get_num_threads()
    compiled = found.nets['openvino_fp32'].request.get_compiled_model()
    assert compiled.get_property('INFERENCE_NUM_THREADS') == torch.get_num_threads()
    assert compiled.get_property('INFERENCE_PRECISION_HINT').to_string() == 'f32'


def test_a_runtime_that_gives_other_numbers_is_refused(monkeypatch):
    need(*NEEDED)
    export = peers.export_onnx
    monkeypatch.setattr(peers, 'export_onnx', lambda net, path, images: export(
        setting().build(paradigm=None, execution='masked'), path, images))
    with pytest.raises(RuntimeError, match='in onnxruntime fp32 must give the numbers'):
        peers.static_peers(setting().build(paradigm=None, execution='masked'),
                           torch.randn(2, 3, 48, 48))


@pytest.mark.parametrize('gone, timed', [('openvino', {'onnxruntime_fp32'}), ('onnxscript', set())])
def test_what_is_not_installed_is_said_and_the_rest_is_timed(tmp_path, monkeypatch, capsys, gone,
                                                             timed):
    need(*NEEDED)
    def import_module(name):
        if name == gone:
            raise ImportError(name)
        return importlib.import_module(name)
    monkeypatch.setattr(peers, 'importlib', type('', (), dict(
        import_module=staticmethod(import_module))))
    import argparse
    parser = argparse.ArgumentParser()
    measure.add_arguments(parser)
    config = tmp_path / 'tiny.py'
    config.write_text(f'model = dict(backbone={SETTINGS["regnet"]!r})')
    args = parser.parse_args(['--config', str(config), '--peers', '--repeats', '2', '--warmup', '1',
                              '--json', str(tmp_path / 'm.json')])
    args.size = (48, 48)
    measure.run(args)
    content = json.loads((tmp_path / 'm.json').read_text())
    row, = content['results']
    assert f'Not timed: {gone}: not installed (pip install laud-mm[peers])' in \
        capsys.readouterr().out
    assert [m.partition(':')[0] for m in content['missing']] == [gone]
    assert set(row['ratios']) == {'static', *timed}
    assert set(content['stamp']['runtimes']) == {'onnxruntime', 'openvino'} - {gone}


@pytest.mark.parametrize('precision, own', [
    ('fp32', {'static', 'onnxruntime_fp32', 'openvino_fp32'}),
    ('bf16', {'static', 'openvino_bf16'}), ('amp_bf16', {'static', 'openvino_bf16'})])
def test_the_fastest_is_named_among_its_precision_and_among_all(precision, own):
    need(*NEEDED)
    row = measure_setting(setting(), precision=precision, warmup=1, repeats=3, peers=True)
    assert {'onnxruntime_fp32', 'openvino_fp32', 'static'} <= set(row['ratios'])
    same = {name: ratio for name, ratio in row['ratios'].items() if name in own}
    assert row['fastest_static'] == max(same, key=same.get)
    assert row['ratio_to_fastest_static'] == max(same.values())
    assert row['ratio_to_fastest_of_all'] == row['ratios'][row['fastest_of_all']] \
        == max(row['ratios'].values())
    assert all(row[f'{name}_p50_ms'] > 0 for name in row['ratios'])


def test_peers_are_timed_on_the_cpu_only():
    with pytest.raises(ValueError, match="device must be 'cpu' with peers, got 'cuda'"):
        measure_setting(setting(), device='cuda', peers=True)


def test_programs_settle_before_they_are_timed(monkeypatch):
    calls, sleeps = [], []
    monkeypatch.setattr(timing, 'time', type('', (), dict(
        sleep=sleeps.append, perf_counter=time.perf_counter)))
    timing.measure_interleaved({n: lambda n=n: calls.append(n) for n in 'ab'}, 'cpu', 1, 2,
                               settle=True)
    assert calls == [*'ab', *'aabb', *'bbaa'] and sleeps == [timing.SETTLE_S] * 4


def test_onnxruntimes_waiting_is_one_of_three():
    with pytest.raises(ValueError, match='spinning must be one of'):
        OnnxruntimeNet('no.onnx', spinning='sometimes')
