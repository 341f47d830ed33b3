"""Exported networks give the numbers of the skipping network, on images they were not traced on."""
import subprocess
import sys

import pytest
import torch

from laud_mm.export import (
    example_images,
    export_onnx,
    export_program,
    export_torchscript,
    largest_difference,
    run_onnx,
    run_torchscript,
)
from laud_mm.models.backbones import LAUDResNet
from laud_mm.registry import MODELS

from .conftest import ROOT, TINY_CONVNEXT, TINY_REGNET, TINY_T2T, randomize_norms

# Every registered backbone, small, with each of its paradigms.
SMALL = {
    'LAUDResNet': (dict(depth=50, base_channels=8, num_stages=1, strides=(2,), dilations=(1,),
                        out_indices=(0,)),
                   (None, 'layer', 'channel', 'spatial', 'both')),
    'LAUDRegNet': (dict(arch=dict(TINY_REGNET, depths=(1, 1, 1, 1)), out_indices=(1, 3)),
                   ('layer', 'channel', 'spatial', 'both')),
    'LAUDConvNeXt': (dict(arch=TINY_CONVNEXT, out_indices=(1, 3), layer_scale_init_value=1.0,
                          gap_before_final_norm=False), ('spatial',)),
    'LAUDT2TViT': (dict(arch=dict(TINY_T2T, num_layers=4), img_size=48, token_dim=16,
                        out_type='raw'),
                   ('token', 'head', 'layer', ('token', 'head', 'layer'))),
}
NETS = [pytest.param(name, paradigm, id=f'{name}-{paradigm}')
        for name, (_, paradigms) in SMALL.items() for paradigm in paradigms]
SIZE = (48, 56)


def build(name, paradigm):
    """A small backbone whose maskers turn some units on and some off."""
    settings = dict(SMALL[name][0], paradigm=paradigm)
    if name in ('LAUDResNet', 'LAUDRegNet'):
        stages = settings.get('num_stages', 4)
        settings.update(spatial_granularity=(4, 4, 2, 1)[:stages], channel_granularity=2)
    net = randomize_norms(MODELS.build(dict(type=f'laud_mm.{name}', **settings))).eval()
    for masker in net.maskers():
        for parameter in masker.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    return net


def other_images(count=3):
    """Images that decide otherwise than the traced one."""
    for i in range(count):
        yield example_images(SIZE).flip(-1) * (i + 0.5)


def rates(net, images):
    with torch.no_grad():
        outputs = net(images)
    return outputs, net.record.cost().mean_rate.item()


def test_every_registered_backbone_is_exported_here():
    from laud_mm.models.backbones import LAUDBackbone
    registered = {name for name, cls in MODELS.module_dict.items()
                  if issubclass(cls, LAUDBackbone) and cls.__module__.startswith('laud_mm.')}
    assert registered == set(SMALL)


@pytest.mark.parametrize('name, paradigm', NETS)
def test_torchscript_equals_the_skipping_network(name, paradigm, tmp_path):
    net = build(name, paradigm)
    path = export_torchscript(net, tmp_path / 'net.pt', example_images(SIZE))
    seen = set()
    for images in other_images():
        expected, rate = rates(net, images)
        seen.add(rate)
        assert largest_difference(run_torchscript(path, images), expected) < 1e-4
    assert paradigm is None or min(seen) < 1


@pytest.mark.slow
@pytest.mark.parametrize('name, paradigm', NETS)
def test_onnx_equals_the_skipping_network(name, paradigm, tmp_path):
    pytest.importorskip('onnxruntime')
    net = build(name, paradigm)
    path = export_onnx(net, tmp_path / 'net.onnx', example_images(SIZE))
    for images in other_images():
        expected, _ = rates(net, images)
        assert largest_difference(run_onnx(path, images), expected) < 1e-4
    assert [p.name for p in tmp_path.iterdir()] == ['net.onnx']  # weights are inside


@pytest.mark.slow
@pytest.mark.parametrize('paradigm', ['layer', 'channel', 'spatial', 'both'])
def test_a_skipping_program_skips_and_survives_saving(paradigm, tmp_path):
    net = build('LAUDResNet', paradigm)
    program = export_program(net, example_images(SIZE), 'skipping')
    torch.export.save(program, tmp_path / 'net.pt2')
    loaded = torch.export.load(tmp_path / 'net.pt2')
    operations = {str(node.target) for node in loaded.graph.nodes}
    assert any('laud_mm.conv1x1_add_patches_' in name for name in operations)
    for images in other_images():
        assert largest_difference(loaded.module()(images), rates(net, images)[0]) < 1e-5


def test_what_skipping_cannot_export_is_named():
    net = build('LAUDT2TViT', 'token')
    with pytest.raises(ValueError, match="execution must be 'masked' for LAUDT2TViT"):
        export_program(net, example_images(SIZE), 'skipping')


def test_exporting_leaves_the_backbone_as_it_was(tmp_path):
    net = build('LAUDResNet', 'spatial').train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    export_torchscript(net, tmp_path / 'net.pt', example_images(SIZE))
    assert net.training and net.execution == 'auto' and all(
        p.requires_grad for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize('size', [(0, 48), (48,), (48.5, 48)])
def test_bad_sizes_are_named(size):
    with pytest.raises(ValueError, match='image_size must be'):
        example_images(size)


def test_a_failed_export_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / 'net.pt').write_text('old')
    monkeypatch.setattr(torch.jit, 'save', lambda *_: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        export_torchscript(LAUDResNet(50, base_channels=4), tmp_path / 'net.pt',
                           example_images(SIZE))
    assert [p.read_text() for p in tmp_path.iterdir()] == ['old']


@pytest.mark.slow
def test_the_tool_writes_checks_and_says_what_it_is(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'export.py'),
         str(ROOT / 'configs' / 'laud_resnet_digits_spatial.py'), '--format', 'torchscript',
         '--size', '32', '32', '--out', str(tmp_path / 'digits.pt')],
        capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'skipping does not export' in done.stdout and (tmp_path / 'digits.pt').is_file()
