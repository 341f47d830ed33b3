"""The project as others install it, used from an empty folder without the checkout."""
import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STACK_SITE = Path(importlib.util.find_spec('torch').origin).parents[1]
# The user's own pip and Python settings must neither help nor hinder.
CLEAN_ENV = {k: v for k, v in os.environ.items() if not k.startswith(('PIP_', 'PYTHON', 'GIT_'))}
CLEAN_ENV['PIP_CONFIG_FILE'] = os.devnull
# Compiling is tested where the suite itself runs on the compiled operations.
CLEAN_ENV['LAUD_MM_WITH_OPS'] = '0'

BASES = {'scope': 'laud_mm::laud/faster_rcnn_laud_r50.py',
         'path': '{package}/.mim/configs/laud/faster_rcnn_laud_r50.py'}
DOWNSTREAM = """
_base_ = '{base}'
model = dict(backbone=dict(paradigm='channel'), roi_head=dict(bbox_head=dict(num_classes=3)))
"""


@dataclass(frozen=True)
class Installed:
    """One way to install the project.

    Attributes:
        python (Path): Interpreter that has the project and the stack.
        package (Path): Folder that `laud_mm` must be imported from.
        source (Path): Copy of the checkout that was installed.
        wheel (Path | None): The wheel that was installed.
    """
    python: Path
    package: Path
    source: Path
    wheel: Path | None = None


def call(*command, cwd):
    """Run a command, return what it printed; an assertion shows how it failed."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=CLEAN_ENV,
                          capture_output=True, text=True)
    assert done.returncode == 0, f'{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout


def pip(*args, cwd):
    return call(sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check', *args,
                cwd=cwd)


def copy_sources(target):
    """Copy what git tracks or would add, so that building leaves the checkout alone."""
    listing = subprocess.run(['git', 'ls-files', '-coz', '--exclude-standard'], cwd=ROOT,
                             env=CLEAN_ENV, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip(f'the checkout is not a git repository: {listing.stderr.strip()}')
    for name in filter(None, listing.stdout.split('\0')):
        if (ROOT / name).exists():  # not deleted since the last commit
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name, follow_symlinks=False)
    return target


def make_environment(folder):
    """Make an environment of the stack alone; returns its interpreter and site folder."""
    call(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder.parent)
    site = Path(sysconfig.get_path('purelib', 'venv', {'base': str(folder)}))
    (site / 'stack.pth').write_text(f'import site; site.addsitedir({str(STACK_SITE)!r})\n')
    return folder / 'bin' / 'python', site


@pytest.fixture(scope='module', params=['wheel', 'editable'])
def installed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(f'{request.param} install')  # a path with a space
    source = copy_sources(folder / 'source')
    python, site = make_environment(folder / 'env')
    install = functools.partial(pip, '--python', python, 'install', '--no-deps', '--no-index',
                                '--ignore-installed', cwd=folder)
    if request.param == 'editable':
        install('--no-build-isolation', '--editable', source)
        return Installed(python, source / 'laud_mm', source)
    pip('wheel', '--no-deps', '--no-index', '--no-build-isolation', '--wheel-dir', 'dist',
        source, cwd=folder)
    wheel, = (folder / 'dist').glob('*.whl')
    install(wheel)
    return Installed(python, site / 'laud_mm', source, wheel)


@pytest.fixture(scope='module')
def downstream(installed, tmp_path_factory):
    """Folder of another project, whose configs inherit ours in every way there is."""
    folder = tmp_path_factory.mktemp('downstream')
    for way, base in BASES.items():
        base = base.format(package=installed.package)
        (folder / f'by_{way}.py').write_text(DOWNSTREAM.format(base=base))
    return folder


def report(installed, folder, code):
    """Run code that leaves a `result`; returns it."""
    code = textwrap.dedent(code) + '\nimport json; print("RESULT" + json.dumps(result))'
    return json.loads(call(installed.python, '-c', code, cwd=folder).split('RESULT')[1])


def test_the_package_and_its_ops_import_from_where_they_were_installed(installed, tmp_path):
    found = report(installed, tmp_path, """
        import importlib.metadata
        import laud_mm, laud_mm.ops
        from laud_mm.ops import units
        result = dict(package=laud_mm.__path__[0], ops=units.__file__,
                      versions=[laud_mm.__version__, importlib.metadata.version('laud-mm')])
        """)
    assert Path(found['package']) == installed.package
    assert Path(found['ops']).samefile(installed.package / 'ops' / 'units.py')
    assert len(set(found['versions'])) == 1


def test_the_package_imports_without_torch(installed, tmp_path):
    assert report(installed, tmp_path, """
        import sys
        import laud_mm
        result = 'torch' not in sys.modules
        """)


@pytest.mark.parametrize('name', [
    'configs/laud/faster_rcnn_laud_r50.py', 'tools/train.py', 'model-index.yml'])
def test_the_mim_folder_holds_configs_tools_and_index(installed, name):
    source = name.replace('configs/laud', 'configs')
    shipped = installed.package / '.mim' / name
    assert shipped.read_text() == (installed.source / source).read_text()


def test_downstream_configs_inherit_and_override(installed, downstream):
    backbones = report(installed, downstream, """
        from mmengine.config import Config
        by_path = Config.fromfile('by_path.py').model.backbone.to_dict()
        import laud_mm
        by_scope = Config.fromfile('by_scope.py').model.backbone.to_dict()
        result = dict(path=by_path, scope=by_scope)
        """)
    assert backbones['path'] == backbones['scope']
    backbone = backbones['scope']
    assert backbone['type'] == 'laud_mm.LAUDResNet' and backbone['paradigm'] == 'channel'
    assert backbone['init_cfg'] == {'type': 'Pretrained', 'checkpoint': 'torchvision://resnet50'}
    assert backbone['depth'] == 50 and backbone['frozen_stages'] == 1 and backbone['norm_eval']


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec('mmdet'), reason='mmdet is not installed')
def test_downstream_detectors_are_built_by_mmdet(installed, downstream):
    built = report(installed, downstream, """
        import laud_mm
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules
        from mmengine.config import Config
        register_all_modules()
        result = {}
        for way in ('scope', 'path'):
            cfg = Config.fromfile(f'by_{way}.py')
            cfg.model.backbone.init_cfg = None
            model = MODELS.build(cfg.model)
            backbone = model.backbone
            result[way] = dict(
                detector=type(model).__module__, backbone=type(backbone).__name__,
                paradigms=sorted({str(m.shape.paradigm) for m in backbone.modules()
                                  if hasattr(m, 'shape')}),
                classes=model.roi_head.bbox_head.num_classes)
        """)
    assert set(built) == set(BASES)
    for model in built.values():
        assert model == {'detector': 'mmdet.models.detectors.faster_rcnn',
                         'backbone': 'LAUDResNet', 'paradigms': ['channel'], 'classes': 3}


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec('mmdet'), reason='mmdet is not installed')
@pytest.mark.parametrize('installed', ['wheel'], indirect=True)
def test_the_sample_repository_builds_all_five_by_name_and_by_path(installed, tmp_path):
    repository = tmp_path / 'downstream'
    shutil.copytree(ROOT / 'tests' / 'downstream', repository)
    (repository / 'laud').symlink_to(installed.package / '.mim' / 'configs' / 'laud')
    built = report(installed, repository, """
        from pathlib import Path
        import laud_mm, torch
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules
        from mmengine.config import Config
        from mmengine.registry import HOOKS
        register_all_modules()
        result = {}
        for path in sorted(Path('configs').glob('by_*/*.py')):
            cfg = Config.fromfile(path)
            cfg.model.backbone.init_cfg = None
            with torch.device('meta'):
                model = MODELS.build(cfg.model)
            hooks = {k: HOOKS.build(cfg.default_hooks[k]) for k in ('activation', 'latency')}
            heads = [m.num_classes for m in model.modules() if hasattr(m, 'num_classes')]
            result[str(path)] = dict(
                detector=type(model).__name__, depth=model.backbone.depth,
                paradigms=sorted({b.shape.paradigm for b in model.backbone.blocks()}),
                classes=sorted(set(heads)), target=hooks['activation'].loss.target,
                devices=[p.name for p in hooks['latency'].predictors],
                data=cfg.val_dataloader.dataset.metainfo.classes)
        """)
    detectors = dict(faster_rcnn='FasterRCNN', retinanet='RetinaNet', mask_rcnn='MaskRCNN',
                     ddq_detr='DDQDETR', mask2former='Mask2Former')
    expected = {'by_name': dict(depth=50, paradigms=['channel'], target=0.7, devices=['TX2']),
                'by_path': dict(depth=101, paradigms=['spatial'], target=0.6, devices=['Nano'])}
    assert len(built) == 10
    for way, values in expected.items():
        for name, detector in detectors.items():
            found = built[f'configs/{way}/{name}_pets.py']
            assert 2 in found.pop('classes')
            assert found == dict(values, detector=detector, data=['cat', 'dog'])


def test_the_hardware_table_is_installed(installed, tmp_path):
    assert report(installed, tmp_path, """
        import sys
        from laud_mm.latency import AnalyticPredictor, known_devices
        from laud_mm.specs import network_spec
        predictor = AnalyticPredictor('V100', published=True)
        ratio = predictor.predict(network_spec('resnet101', paradigm='layer'), 0.4).ratio
        result = [len(known_devices()), round(ratio, 2), 'torch' not in sys.modules]
        """) == [9, 0.47, True]


@pytest.mark.parametrize('installed', ['wheel'], indirect=True)
def test_a_wheel_ships_the_package_alone(installed):
    with zipfile.ZipFile(installed.wheel) as wheel:
        names = wheel.namelist()
    roots = {name.split('/')[0].split('-')[0] for name in names}
    assert roots == {'laud_mm'}
    assert not [name for name in names if '__pycache__' in name or '/tests/' in name]
    modules = {f'laud_mm/{path.relative_to(installed.source / "laud_mm")}'
               for path in (installed.source / 'laud_mm').rglob('*.py')
               if not {'.mim', 'demo', 'zoo'} & set(path.parts)}
    assert modules <= set(names)


@pytest.mark.parametrize('installed', ['editable'], indirect=True)
def test_an_editable_install_sees_a_new_config_and_op_at_once(installed, tmp_path):
    (installed.source / 'configs' / 'new.py').write_text('answer = 42\n')
    (installed.source / 'ops' / 'new.py').write_text('answer = 42\n')
    (tmp_path / 'mine.py').write_text("_base_ = 'laud_mm::laud/new.py'\n")
    assert report(installed, tmp_path, """
        import laud_mm.ops.new
        from mmengine.config import Config
        result = [laud_mm.ops.new.answer, Config.fromfile('mine.py').answer]
        """) == [42, 42]


def test_the_index_that_mim_reads_names_configs_that_are_there(installed):
    import yaml
    mim = installed.package / '.mim'
    imported = yaml.safe_load((mim / 'model-index.yml').read_text())['Import']
    models = [model for path in imported
              for model in yaml.safe_load((mim / path).read_text())['Models']]
    assert len(models) > 70
    assert all((mim / model['Config']).is_file() for model in models)
