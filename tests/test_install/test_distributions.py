"""`make dist`: the source archive alone builds a wheel that misses nothing."""
import runpy
import sys
import tarfile
import zipfile

import pytest
import torch

from ..conftest import ROOT
from .test_packaging import call, copy_sources, make_environment, pip

pytest.importorskip('build')


@pytest.fixture(scope='module')
def distributions(tmp_path_factory):
    """Source archive, the wheel built from it, and one built straight from the checkout."""
    folder = tmp_path_factory.mktemp('dist')
    source = copy_sources(folder / 'source')
    call(sys.executable, '-m', 'build', '--no-isolation', '--outdir', folder / 'dist', source,
         cwd=folder)
    pip('wheel', '--no-deps', '--no-index', '--no-build-isolation', '--wheel-dir', 'direct',
        source, cwd=folder)
    archive, = (folder / 'dist').glob('*.tar.gz')
    wheel, = (folder / 'dist').glob('*.whl')
    direct, = (folder / 'direct').glob('*.whl')
    return archive, wheel, direct


def contents(wheel):
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if not name.endswith('RECORD')}


def test_the_source_archive_builds_the_wheel_of_the_checkout(distributions):
    _, wheel, direct = distributions
    assert contents(wheel) == contents(direct)


@pytest.mark.parametrize('release', [False, True])
def test_a_release_is_for_every_python_and_the_torch_that_it_was_built_with(monkeypatch, release):
    asked = {}
    monkeypatch.setattr('setuptools.setup', asked.update)
    monkeypatch.setenv('LAUD_MM_WITH_OPS', '1')
    monkeypatch.setenv('LAUD_MM_RELEASE', str(int(release)))
    runpy.run_path(str(ROOT / 'setup.py'))
    minor = '.'.join(torch.__version__.split('.')[:2])
    assert asked['install_requires'] == [f'torch=={minor}.*' if release else 'torch>=2.4', 'numpy']
    extension, = asked['ext_modules']
    assert extension.py_limited_api is release
    assert asked.get('options') == (dict(bdist_wheel=dict(py_limited_api='cp311')) if release
                                    else None)


def test_the_wheel_holds_no_studies_and_tools_that_work(distributions):
    names = set(contents(distributions[1]))
    assert not [name for name in names if name.startswith(('laud_mm/demo/', 'laud_mm/zoo/'))]
    tools = {name.removeprefix('laud_mm/.mim/tools/') for name in names if '/.mim/tools/' in name}
    assert {'train.py', 'test.py', 'latency.py', 'get_flops.py', 'export.py', 'image_demo.py',
            'visualize.py', 'convert_checkpoint.py', 'dist_train.sh'} <= tools
    for tool in tools:
        text = contents(distributions[1])[f'laud_mm/.mim/tools/{tool}'].decode()
        assert 'laud_mm.demo' not in text and 'laud_mm.zoo' not in text, tool


def test_the_source_archive_has_what_compiling_and_citing_need(distributions):
    with tarfile.open(distributions[0]) as file:
        names = {name.partition('/')[2] for name in file.getnames()}
    assert {'LICENSE', 'CITATION.cff', 'CHANGELOG.md', 'README.md', 'ops/csrc/cpu/conv_ops.cpp',
            'ops/csrc/cpu/packing.h', 'laud_mm/py.typed'} <= names


def test_the_wheel_of_the_source_archive_installs_with_license_types_and_data(distributions,
                                                                              tmp_path):
    python, _ = make_environment(tmp_path / 'env')
    pip('--python', python, 'install', '--no-deps', '--no-index', '--ignore-installed',
        distributions[1], cwd=tmp_path)
    said = call(python, '-c', """
from importlib.metadata import distribution
from importlib.resources import files
from laud_mm.latency import load_hardware
found = distribution('laud-mm')
print(found.metadata['License'] or found.metadata['License-Expression'], load_hardware('TX2').batch,
      files('laud_mm').joinpath('py.typed').is_file(),
      any(str(f).endswith('LICENSE') for f in found.files))
""", cwd=tmp_path)
    assert said.split() == ['Apache-2.0', '1', 'True', 'True']
