"""The core works with torch and numpy alone, and computes what it computes beside mm* packages."""
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from laud_mm.framework import plain
from laud_mm.framework.registry import Registry
from laud_mm.models.backbones import LAUDRegNet, LAUDResNet, LAUDT2TViT
from laud_mm.utils.stack import EXTRAS, require_packages

from ..conftest import ROOT, TINY_REGNET, TINY_T2T
from .test_packaging import call, copy_sources, pip

# What `pip install laud-mm` does not bring; None in its place makes a package unimportable.
ABSENT = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'torchvision', 'rich', 'addict', 'yaml', 'cv2',
          'matplotlib', 'scipy', 'PIL', 'timm', 'huggingface_hub', 'safetensors')
# Modules that need more, and what they say.
NEEDS = {
    **dict.fromkeys(('laud_mm.hooks', 'laud_mm.models.classifiers', 'laud_mm.utils.run',
                     'laud_mm.commands.deploy', 'laud_mm.commands.evaluate',
                     'laud_mm.commands.images', 'laud_mm.commands.quantize', 'laud_mm.demo',
                     'laud_mm.zoo'), r"needs mmengine.*pip install 'laud-mm\[openmmlab\]', after"),
    'laud_mm.timm': r"needs timm, .*pip install 'laud-mm\[timm\]'$",
    'laud_mm.hub': r"needs huggingface_hub and safetensors, .*pip install 'laud-mm\[hub\]' "
                   r"'laud-mm\[safetensors\]'$"}
NETS = {'resnet': (LAUDResNet, dict(depth=50, base_channels=8, paradigm='spatial')),
        'regnet': (LAUDRegNet, dict(arch=TINY_REGNET, paradigm='channel')),
        't2t_vit': (LAUDT2TViT, dict(arch=TINY_T2T, img_size=64, token_dim=16,
                                     paradigm=('token', 'head')))}


def readme_lines():
    """The README's program for an environment with torch alone."""
    return re.search(r'```python\n(import torch\n.*?)```', (ROOT / 'README.md').read_text(),
                     re.S).group(1)


def make_net(kind):
    torch.manual_seed(0)
    cls, arguments = NETS[kind]
    net = cls(**arguments)
    net.init_weights()
    return net.eval()


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """What a process without mm* packages found out; `folder` is where it wrote."""
    folder = tmp_path_factory.mktemp('alone')
    from mmengine.logging import HistoryBuffer
    torch.save(dict(state_dict=make_net('resnet').state_dict(), message_hub=dict(
        log=HistoryBuffer([1.0], [1]))), folder / 'runner.pth')
    program = textwrap.dedent(f"""
        import importlib, json, logging, pkgutil, sys
        for name in {ABSENT!r}:
            sys.modules[name] = None
        logging.basicConfig(level=logging.INFO)
        import torch
        import laud_mm
        from laud_mm.models.backbones import LAUDRegNet, LAUDResNet, LAUDT2TViT
        from laud_mm.models.find import unwrap
        from laud_mm.registry import MODELS
        refused, found = {{}}, {{}}
        for module in pkgutil.walk_packages(laud_mm.__path__, 'laud_mm.'):
            if module.name == 'laud_mm.ops._C':
                continue
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                refused[module.name] = str(error)
        for name, (cls, arguments) in dict(
                resnet=(LAUDResNet, {NETS['resnet'][1]!r}),
                regnet=(LAUDRegNet, {NETS['regnet'][1]!r}),
                t2t_vit=(LAUDT2TViT, {NETS['t2t_vit'][1]!r})).items():
            torch.manual_seed(0)
            net = MODELS.build(dict(arguments, type='laud_mm.' + cls.__name__))
            assert type(net) is cls
            net.init_weights()
            with torch.no_grad():
                outputs = net.eval()(torch.ones(2, 3, 64, 64))
            found[name] = dict(weights=net.state_dict(), outputs=outputs)
        torch.save(found, 'found.pt')
        net = LAUDResNet(**{NETS['resnet'][1]!r}, init_cfg=dict(
            type='Pretrained', checkpoint='runner.pth'))
        net.init_weights()
        same = all(torch.equal(value, found['resnet']['weights'][key])
                   for key, value in net.state_dict().items())
        torch.save(net.state_dict(), 'own.pth')
        from laud_mm.checkpoints import convert_file
        converted = convert_file('laud', 'own.pth', 'static.pth', target='torchvision')
        with torch.no_grad():
            deployed = laud_mm.deploy(net.eval(), image_size=(64, 64), batch=2)(
                torch.ones(2, 3, 64, 64))
        difference = max((ours - theirs).abs().max().item() for ours, theirs in zip(
            deployed, found['resnet']['outputs']))
        errors = {{}}
        for kind in ('mmdet.ResNet', 'laud_mm.DistillationClassifier', 'laud_mm.Unknown'):
            try:
                MODELS.build(dict(type=kind))
            except (ModuleNotFoundError, KeyError) as error:
                errors[kind] = str(error)
        from laud_mm.commands.latency import main
        main('', ['measure', '--network', 'regnety_400mf', '--paradigm', 'layer', '--size', '32',
                  '32', '--repeats', '1', '--warmup', '0', '--csv', 'measured.csv'])
        try:
            main('', ['measure', '--config', 'any.py'])
        except SystemExit as error:
            errors['--config'] = str(error)
        def mm():
            return [m for m in sys.modules if m.split('.')[0] in {ABSENT[:4]!r} and sys.modules[m]]
        print('RESULT' + json.dumps(dict(refused=refused, same=same, errors=errors, mm=mm(),
                                         dropped=len(converted.dropped), difference=difference,
                                         unwrapped=unwrap(net) is net)))
        """)
    done = subprocess.run([sys.executable, '-c', program], cwd=folder, capture_output=True,
                          text=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.split('RESULT')[1]), folder=folder, log=done.stderr)


def test_every_module_imports_or_names_what_it_needs_and_how_to_get_it(alone):
    assert set(alone['refused']) == set(NEEDS)
    for name, text in alone['refused'].items():
        assert re.search(NEEDS[name], text), text
    assert alone['mm'] == [] and alone['unwrapped']


@pytest.mark.parametrize('kind', NETS)
def test_weights_and_outputs_are_those_of_the_frameworks(alone, kind):
    found = torch.load(alone['folder'] / 'found.pt')[kind]
    net = make_net(kind)
    with torch.no_grad():
        outputs = net(torch.ones(2, 3, 64, 64))
    own = net.state_dict()
    assert list(own) == list(found['weights'])
    assert all(torch.equal(value, found['weights'][key]) for key, value in own.items())
    for ours, theirs in zip(outputs, found['outputs']):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_runners_checkpoint_loads_and_says_what_it_loaded(alone):
    assert alone['same'] and 'weights of the backbone' in alone['log']


def test_types_of_other_packages_and_unknown_ones_are_told_apart(alone):
    errors = alone['errors']
    assert errors['--config'].startswith('error: --config needs mmengine')
    assert "type='mmdet.ResNet' needs mmengine" in errors['mmdet.ResNet']
    assert 'mmpretrain' in errors['laud_mm.DistillationClassifier']
    assert "LAUDT2TViT, got 'laud_mm.Unknown'" in errors['laud_mm.Unknown']


def test_networks_are_deployed_and_checkpoints_converted(alone):
    assert alone['difference'] < 1e-4
    assert alone['dropped'] and not any('masker' in key for key in torch.load(
        alone['folder'] / 'static.pth')['state_dict'])


def test_the_latency_tool_measures(alone):
    assert 'regnety_400mf,layer' in (alone['folder'] / 'measured.csv').read_text()


def test_a_missing_package_is_named_with_its_extra():
    require_packages('this test', 'torch', 'pytest')
    with pytest.raises(ModuleNotFoundError, match=r'this test needs no_such_thing, not installed '
                       r'here: pip install no_such_thing$') as caught:
        require_packages('this test', 'torch', 'no_such_thing')
    assert caught.value.name == 'no_such_thing'


@pytest.mark.parametrize('config, weight, bias', [
    (dict(type='Constant', layer='Linear', val=2), 2, 0),
    (dict(type='Constant', layer=['Conv2d', '_NormBase'], val=3, bias=1), 3, 1)])
def test_initialisers_reach_the_layers_that_they_name_by_class_or_base(config, weight, bias):
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.InstanceNorm2d(2), nn.Conv2d(2, 2, 1))
    chosen = module[:1] if config['layer'] == 'Linear' else module[3:]
    others = [p.clone() for m in module if m not in list(chosen) for p in m.parameters()]
    plain.initialize(module, config)
    assert all((m.weight == weight).all() and (m.bias == bias).all() for m in chosen)
    assert all(torch.equal(a, b) for a, b in zip(others, [
        p for m in module if m not in list(chosen) for p in m.parameters()]))


@pytest.mark.parametrize('config', [dict(type='Caffe2Xavier', layer='Conv2d'),
                                    dict(type='Constant', val=1, override=dict(name='fc'))])
def test_what_only_mmengine_initialises_is_refused(config):
    with pytest.raises(ValueError, match='init_cfg must have a type of Constant.*got'):
        plain.initialize(nn.Linear(2, 2), config)


def test_modules_inside_are_initialised_once_after_the_one_around_them():
    class Part(plain.BaseModule):
        def __init__(self, inside=()):
            super().__init__(dict(type='Constant', layer='Linear', val=len(inside)))
            self.fc, self.inside = nn.Linear(1, 1), nn.Sequential(*inside)
    outer = Part([nn.ReLU(), Part()])
    outer.init_weights()
    assert outer.fc.weight.item() == 2 and outer.inside[1].fc.weight.item() == 0
    nn.init.zeros_(outer.fc.weight)
    outer.init_weights()
    assert outer.fc.weight.item() == 0 and outer.inside[1].is_init


def test_layers_are_built_as_configs_say():
    conv = plain.build_conv_layer(dict(type=nn.Conv2d), 2, 4, 3, padding=1, bias=False)
    assert conv.padding == (1, 1) and conv.bias is None
    name, norm = plain.build_norm_layer(dict(type='SyncBN', eps=1e-3, requires_grad=False), 4)
    assert name == 'bn' and type(norm) is nn.SyncBatchNorm and norm.eps == 1e-3
    assert not any(p.requires_grad for p in norm.parameters())


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    drop, x = plain.DropPath(0.25), torch.ones(4000, 2, 3)
    y = drop.train()(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y.amax((1, 2)) == y.amin((1, 2))).all() and y.mean().item() == pytest.approx(1, abs=.05)
    assert drop.eval()(x) is x


def test_checkpoints_that_only_mmengine_opens_are_refused(tmp_path):
    with pytest.raises(ValueError, match='a checkpoint must be a file.*got .s3://weights'):
        plain.load_checkpoint('s3://weights')
    torch.save(dict(weight=torch.ones(1)), tmp_path / 'net.pth')
    assert plain.load_checkpoint(str(tmp_path / 'net.pth'))['weight'] == 1


@pytest.mark.parametrize('name, version', [('resnet50', 'V1'),
                                           ('resnet50.imagenet1k_v2', 'V2')])
def test_torchvision_checkpoints_are_found_by_their_names(monkeypatch, name, version):
    models = pytest.importorskip('torchvision.models')
    monkeypatch.setattr('torch.hub.load_state_dict_from_url', lambda url, **kwargs: url)
    expected = models.get_model_weights('resnet50')[f'IMAGENET1K_{version}'].url
    assert plain.load_checkpoint(f'torchvision://{name}') == expected


def test_a_registry_takes_names_with_and_without_its_scope():
    registry = Registry('thing', 'own')

    @registry.register_module()
    class Thing:
        def __init__(self, size):
            self.size = size
    assert registry.get('Thing') is registry.get('own.Thing') is Thing
    assert registry.get('other.Thing') is None
    assert registry.build(dict(type='own.Thing', size=3)).size == 3
    assert registry.build(dict(type=Thing, size=4)).size == 4


@pytest.mark.slow
def test_the_readmes_lines_run_in_a_bare_environment(tmp_path):
    """An environment of what `pip install laud-mm` brings, linked from the one of the tests."""
    source = copy_sources(tmp_path / 'source')
    pip('wheel', '--no-deps', '--no-index', '--no-build-isolation', '--wheel-dir', 'dist', source,
        cwd=tmp_path)
    wheel, = (tmp_path / 'dist').glob('*.whl')
    call(sys.executable, '-m', 'venv', '--without-pip', tmp_path / 'env', cwd=tmp_path)
    site = Path(sysconfig.get_path('purelib', 'venv', {'base': str(tmp_path / 'env')}))
    pip('install', '--no-deps', '--no-index', '--target', site, wheel, cwd=tmp_path)
    ours = importlib.metadata.Distribution.at(next(site.glob('laud_mm-*.dist-info')))
    wanted = {re.match(r'[\w.-]+', text)[0] for text in ours.requires if 'extra ==' not in text}
    assert wanted == {'torch', 'numpy'}
    assert set(EXTRAS.values()) <= set(ours.metadata.get_all('Provides-Extra'))
    link_distributions(wanted, site)
    for compiled in (ROOT / 'ops').glob('_C*.so'):  # as a wheel that was built with torch has it
        shutil.copy2(compiled, site / 'laud_mm' / 'ops')
    installed = {path.name.split('.')[0] for path in site.iterdir()}
    assert not installed & {'mmengine', 'mmcv', 'mmdet', 'mmpretrain', 'torchvision', 'yaml'}
    python = tmp_path / 'env' / 'bin' / 'python'
    # One thread: others that share the cores would make two wait for each other.
    said = call('env', 'OMP_NUM_THREADS=1', python, '-W', 'error', '-c', readme_lines(),
                cwd=tmp_path).split()
    predicted, measured = map(float, said)
    assert 0.4 < predicted < 0.7 and 0.1 < measured < 2


def link_distributions(names, site):
    """Link distributions of this environment, and what they need, into another one."""
    todo, done = list(names), set()
    while todo:
        name = todo.pop().lower().replace('_', '-')
        if name in done:
            continue
        done.add(name)
        try:
            found = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        todo += [re.match(r'[\w.-]+', text)[0] for text in found.requires or ()
                 if 'extra ==' not in text]
        for top in {file.parts[0] for file in found.files or ()} - {'..', '__pycache__'}:
            source, link = Path(found.locate_file(top)), site / top
            if top == 'nvidia':  # a folder that several share
                link = site / 'nvidia'
            if not link.exists() and source.exists():
                link.symlink_to(source)
