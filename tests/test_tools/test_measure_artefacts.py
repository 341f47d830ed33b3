"""tools/latency.py measure --artifact times artefacts beside static nets of their runtime."""
import argparse
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from laud_mm.commands import deploy as command
from laud_mm.deploy import load, measure_scales
from laud_mm.deploy.artefact import NETS
from laud_mm.deploy.onnx.runtimes import PACKAGES
from laud_mm.latency.measure import LatencyStats
from laud_mm.profiling import artefacts
from laud_mm.specs import find_backbone_config
from laud_mm.utils.run import load_config

from ..conftest import ROOT
from .test_latency_tool import fails, run

BACKBONES = dict(
    resnet=dict(type='laud_mm.LAUDResNet', depth=50, base_channels=8, paradigm='layer',
                num_stages=1, strides=(1,), dilations=(1,), out_indices=(0,)),
    t2t=dict(type='laud_mm.LAUDT2TViT', paradigm='token', img_size=48, token_dim=16,
             arch=dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=40)))


def deployed(folder, kind, *more, name='resnet'):
    """An artefact of tools/deploy.py."""
    if kind in PACKAGES:
        pytest.importorskip(PACKAGES[kind], reason=f'{PACKAGES[kind]} is not installed: pip '
                            'install laud-mm[deploy]')
    config = folder / 'net.py'
    config.write_text(f'model = dict(type="ImageClassifier", backbone={BACKBONES[name]!r})\n'
                      'data_preprocessor = dict(mean=[120, 115, 105], std=[58, 57, 57], '
                      'to_rgb=True)\n'
                      'test_dataloader = dict(dataset=dict(pipeline=[\n'
                      '    dict(type="LoadImageFromFile"), dict(type="PackInputs")]))\n'
                      'default_scope = "mmpretrain"')
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    torch.manual_seed(0)
    command.run(parser.parse_args([str(config), '--to', kind, '--size', '48', '48', '--out',
                                   str(folder / kind), *map(str, more)]))
    return folder / kind


def measured(folder, *more):
    """The JSON of a measurement."""
    run('measure', '--artifact', folder, '--batches', 2, '--repeats', 2, '--warmup', 1, '--json',
        folder / 'm.json', '--csv', folder / 'm.csv', *more)
    return json.loads((folder / 'm.json').read_text())


@pytest.mark.parametrize('kind, more, batches', [
    ('onnx', ['--decisions'], [1, 2]), ('openvino', ['--one-image'], [1]),
    pytest.param('aoti', [], [1, 2], marks=pytest.mark.slow),
    pytest.param('compile', ['--decisions', '--precision', 'bf16'], [2], marks=pytest.mark.slow)])
def test_each_kind_is_timed_beside_its_own_static_net(tmp_path, capsys, kind, more, batches):
    folder = deployed(tmp_path, kind, *more)
    content = measured(folder, '--batch', *batches)
    assert content['kind'] == kind and content['artifact'] == str(folder)
    assert content['stamp']['static'] == f'in the runtime of the artefact ({kind})'
    assert content['precision'] == ('bf16' if '--precision' in more else 'fp32')
    assert [row['batch'] for row in content['results']] == batches
    for row in content['results']:
        assert row['p50_ms'] > 0 and row['static_p50_ms'] > 0 and row['size'] == [48, 48]
        assert row['ratio_to_fastest_static'] == row['ratios']['static'] > 0
        assert row['network'] == 'net' and row['paradigm'] == 'layer'
        assert (row['realised_rate'] is None) == ('--decisions' not in more)
    assert ('--decisions returns them' in capsys.readouterr().out) == ('--decisions' not in more)


def test_decisions_are_those_of_the_images_of_a_folder(tmp_path):
    from PIL import Image
    folder = deployed(tmp_path, 'onnx', '--decisions')
    (tmp_path / 'images').mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'images' / f'{i}.png')
    seen = []
    artefact = load(folder)
    content = measured(folder, '--images', tmp_path / 'images', '--size', 40, 56)
    row, = content['results']
    assert row['size'] == [40, 56] and content['images'] == str(tmp_path / 'images')
    from laud_mm.commands.images import backbone_inputs, image_files
    for x in backbone_inputs(load_config(str(tmp_path / 'net.py')),
                             image_files(str(tmp_path / 'images'), 2)):
        assert abs(x.mean()) < 0.5 < x.std()
        x = torch.nn.functional.interpolate(x, (40, 56), mode='bilinear')
        seen += [mask.float().mean().item() for mask in artefact(x)[1].values()]
    assert row['realised_rate'] == pytest.approx(np.mean(seen), abs=1e-6)
    fails('--images must have 16 images for 8 batches of 2, got 3', 'measure', '--artifact', folder,
          '--images', tmp_path / 'images', '--batch', 2)
    fails('--images must be a folder with images', 'measure', '--artifact', folder, '--images',
          folder)
    (tmp_path / 'net.py').unlink()
    fails("--images needs the artefact's config", 'measure', '--artifact', folder, '--images',
          tmp_path / 'images', '--batches', 1)


def test_static_nets_of_other_runtimes_and_a_transformers_are_timed_too(tmp_path, capsys):
    for name in ('onnxscript', *PACKAGES.values()):
        pytest.importorskip(name, reason=f'{name} is not installed')
    row, = measured(deployed(tmp_path, 'openvino', name='t2t'), '--peers')['results']
    assert {'static', 'onnxruntime_fp32', 'openvino_fp32'} <= set(row['ratios'])
    assert row['fastest_of_all'] in row['ratios'] and 'fastest_of_all' in capsys.readouterr().out


@pytest.mark.slow
def test_an_int8_artefact_is_timed_beside_the_static_int8_net(tmp_path):
    deployed(tmp_path, 'compile')
    _, settings = find_backbone_config(load_config(str(tmp_path / 'net.py')).model)
    from laud_mm.registry import MODELS
    measure_scales(MODELS.build(settings.to_dict()).eval(), [torch.randn(2, 3, 48, 48)]).save(
        tmp_path / 'scales.json')
    folder = deployed(tmp_path, 'compile', '--quantized', tmp_path / 'scales.json')
    content = measured(folder, '--compile')
    row, = content['results']
    assert content['precision'] == 'int8' and {'static', 'compiled'} <= set(row['ratios'])


def test_what_an_artefact_cannot_run_is_named_before_any_work(tmp_path):
    folder = deployed(tmp_path, 'onnx', '--one-image')
    card = json.loads((folder / 'card.json').read_text())
    measure = ('measure', '--artifact', folder)
    for args, message in (
            (('--batch', 1, 2), 'batch must be 1 for the artefact, got 2'),
            (('--size', 0, 48), '--size must be two positive ints'),
            (('--precision', 'bf16'), "precision must be 'fp32' for 'onnx', got 'bf16'"),
            (('--device', 'cuda'), 'device must be cpu, for which the artefact was made'),
            (('--batches', 0), '--batches must be at least 1, got 0'),
            *(((f'--{field}', value), f'--{field} must be left out with --artifact, which says it')
              for field, value in (('config', 'a.py'), ('network', 'resnet50'), ('rate', 0.5),
                                   ('paradigm', 'layer'), ('plan', 'p.json'),
                                   ('gates', 'g.json'), ('layout', 'contiguous')))):
        fails(message, *measure, *args)
    fails('artefact must be a folder of write_artefact', 'measure', '--artifact', tmp_path / 'no')
    fails('--images needs --artifact', 'measure', '--images', tmp_path)

    def changed(**more):
        (folder / 'card.json').write_text(json.dumps(dict(card, **more)))
    (folder / NETS['aoti']).write_bytes(b'')
    for more, message in (
            (dict(backbone=None), 'whose card has the backbone'),
            (dict(kind='aoti', torch='2.0.0', cpu_isa=None),
             "must be of torch 2.11.0, as this machine is, got '2.0.0': deploy again"),
            (dict(kind='aoti', inputs=[dict(channels=3, smallest_side=33)]), 'deploy again')):
        changed(**more)
        fails(message.replace('2.11.0', torch.__version__.split('+')[0]), *measure)
    fails('size must be at least 33 x 33 for the artefact, got 32 x 48', *measure, '--size', 32, 48)
    fails("precision must be left out for 'aoti', which computes in float32", *measure,
          '--precision', 'bf16')


@pytest.mark.parametrize('kind', PACKAGES)
def test_a_missing_runtime_is_named_with_what_installs_it(tmp_path, monkeypatch, kind):
    folder = deployed(tmp_path, kind)
    monkeypatch.setitem(sys.modules, PACKAGES[kind], None)
    fails('pip install laud-mm[deploy]', 'measure', '--artifact', folder)


def test_times_are_means_over_batches_of_medians(monkeypatch):
    calls = []

    def interleaved(programs, device, warmup, repeats, settle):
        for program in programs.values():
            program()
        return {}, {(name, i): [i + 1.0, i + 2.0, i + 12.0] for name, i in programs}
    monkeypatch.setattr(artefacts, 'measure_interleaved', interleaved)
    batches = [torch.zeros(1), torch.ones(1)]
    found = artefacts.time_nets(dict(a=lambda x: calls.append(('a', x.item())),
                                     b=lambda x: calls.append(('b', x.item()))), batches, 0, 3)
    assert calls == [('a', 0), ('b', 0), ('a', 1), ('b', 1)]
    assert found['a'].ms == 2.5
    assert found['a'].stats == LatencyStats.of([1, 2, 12, 2, 3, 13])


def test_files_planned_for_one_size_refuse_others(tmp_path):
    folder = deployed(tmp_path, 'onnx')
    net = load(folder, image_size=(48, 56))
    assert net(torch.zeros(2, 3, 48, 56))[0].shape == (2, 32, 12, 14)
    with pytest.raises(ValueError, match=r'images must be 48 x 56, for which the net was loaded'):
        net(torch.zeros(1, 3, 48, 48))
    with pytest.raises(ValueError, match="precision must be one of 'fp32', got 'bf16'"):
        load(folder, precision='bf16')


def test_an_artefact_that_gives_no_numbers_is_refused(tmp_path, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return tuple(y * float('nan') for y in self.net(x))
    broken = Broken()
    broken.net = load(deployed(tmp_path, 'onnx'))
    monkeypatch.setattr(command, 'load', lambda folder: broken)
    with pytest.raises(command.CheckError, match='differs from the skipping network by nan'):
        deployed(tmp_path, 'onnx')


@pytest.mark.slow
def test_the_benchmark_of_deployed_nets_times_every_runtime(tmp_path):
    here = [kind for kind, name in PACKAGES.items() if importlib.util.find_spec(name)]
    if len(here) < 2:
        pytest.skip('onnxruntime and openvino are needed: pip install laud-mm[deploy]')
    program = [sys.executable, '-W', 'ignore', ROOT / 'benchmarks' / 'deployed.py', '--network',
               'resnet50', '--width', '8', '--size', '48x48', '--batches', '2', '--repeats', '1']
    done = subprocess.run([*program, '--paradigm', 'layer', 'spatial', '--runtime', 'eager', *here,
                           '--json', tmp_path / 'd.json', '--markdown', tmp_path / 'd.md'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / 'd.json').read_text())['results']
    assert {(row['paradigm'], row['runtime']) for row in rows} == {
        (paradigm, kind) for paradigm in ('layer', 'spatial') for kind in ('eager', *here)}
    for row in rows:
        assert row['ratio'] == pytest.approx(row['skipping_ms'] / row['static_ms'])
        assert row['ratio_to_fastest_static'] >= row['ratio'] * (1 - 1e-9)
        assert row['rate'] is None or 0.3 < row['rate'] < 0.7
    assert (tmp_path / 'd.md').read_text().count('\n') == len(rows) + 2
