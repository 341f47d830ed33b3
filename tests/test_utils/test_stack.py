import importlib.metadata
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from laud_mm.utils import stack
from laud_mm.utils.stack import FAMILIES, StackError, check_stack, find_stack_problems

ROOT = Path(__file__).resolve().parents[2]
ALL = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain')
VERSIONS = {'torch': '2.11.0', 'torchvision': '0.26.0', 'setuptools': '81.0.0',
            'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0', 'mmpretrain': '1.2.0'}


def find(torch_cuda='13.0', torchvision_has_cuda=True, mmcv_has_ops=True, need=ALL, **versions):
    """Problems of a fine stack but for the arguments; a version of None is not installed."""
    versions = {k: v for k, v in {**VERSIONS, **versions}.items() if v is not None}
    return find_stack_problems(versions, torch_cuda, torchvision_has_cuda, mmcv_has_ops, need)


@pytest.mark.parametrize(('torch_cuda', 'torchvision_has_cuda'), [('13.0', True), (None, False)])
def test_a_fine_stack_has_no_problems(torch_cuda, torchvision_has_cuda):
    assert find(torch_cuda, torchvision_has_cuda) == []


def wrong_version(name, version):
    _, low, high = FAMILIES['openmmlab'][name]
    return pytest.param({name: version}, [
        f'{name} is {version},', f"pip install '{name}>={low},<{high}'"], id=f'{name}{version}')


@pytest.mark.parametrize(('changes', 'mentions'), [
    pytest.param(dict(torch_cuda=None), [
        'torch 2.11.0 is built for CPU only', 'torchvision 0.26.0 for CUDA',
        'pip install torch==', 'torchvision=='], id='cpu_torch-cuda_torchvision'),
    pytest.param(dict(torchvision_has_cuda=False), [
        'torch 2.11.0 is built for CUDA', 'torchvision 0.26.0 for CPU only',
        'pip install torch==', 'torchvision=='], id='cuda_torch-cpu_torchvision'),
    pytest.param(dict(setuptools='82'), [
        'setuptools is 82,', "pip install 'setuptools<82'"], id='setuptools82'),
    pytest.param(dict(setuptools='84.2.1'), [
        'setuptools is 84.2.1,', "pip install 'setuptools<82'"], id='setuptools84.2.1'),
    pytest.param(dict(mmcv_has_ops=False), [
        'mmcv has no compiled ops', 'MMCV_WITH_OPS=1 pip install', 'mmcv==2.1.0'],
        id='mmcv_without_ops'),
    pytest.param(dict(mmdet=None), [
        'mmdet is missing', "pip install 'mmdet>=3.3.0,<3.4'"], id='no_mmdet'),
    pytest.param(dict(mmengine=None), [
        'mmengine is missing', "pip install 'mmengine>=0.10.4,<0.11'"], id='no_mmengine'),
    *[wrong_version(name, version) for name, version in [
        ('mmengine', '0.10.3'), ('mmengine', '0.11.0'),
        ('mmcv', '1.7.2'), ('mmcv', '2.0.1'), ('mmcv', '2.2.0'),
        ('mmdet', '2.28.2'), ('mmdet', '3.2.0'), ('mmdet', '3.4.0'),
        ('mmpretrain', '1.1.1'), ('mmpretrain', '1.3.0')]],
])
def test_a_problem_names_the_package_what_was_found_and_a_fix(changes, mentions):
    problem, = find(**changes)
    assert [text for text in mentions if text not in problem] == []


def test_every_problem_is_listed_at_once():
    problems = find(torch_cuda=None, mmcv_has_ops=False, setuptools='84.2.1', mmdet='3.2.0',
                    mmpretrain=None)
    assert len(problems) == 5
    assert all('pip install' in problem and '\n' not in problem for problem in problems)


def lowest(family):
    """Versions of a fine stack: the lowest of a family, nothing of the others."""
    own = dict.fromkeys(dist for f in FAMILIES.values() for dist, _, _ in f.values())
    own.update({dist: low for dist, low, _ in FAMILIES[family].values()})
    return own


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('family', FAMILIES)
def test_the_lowest_version_is_allowed_and_the_limit_is_not(family, name):
    assert find(**lowest(family)) == []
    dist, low, high = FAMILIES[family][name]
    problem, = find(**{**lowest(family), dist: high})
    assert problem.startswith(f'{dist} is {high}') and f"pip install '{dist}>={low}," in problem


def test_what_is_missing_is_asked_for_in_the_family_that_is_there():
    problem, = find(**{**lowest('onedl'), 'onedl-mmdetection': None})
    assert 'onedl-mmdetection is missing' in problem
    problem, = find(mmcv_has_ops=False, **lowest('onedl'))
    assert '--no-binary onedl-mmcv' in problem


def test_two_families_at_once_are_refused():
    problem, = find(**{**VERSIONS, **{k: v for k, v in lowest('onedl').items() if v}})
    assert 'openmmlab and onedl packages are both installed' in problem


@pytest.mark.parametrize('family', FAMILIES)
def test_what_pip_and_make_install_is_what_is_allowed(family):
    asked = [Requirement(line) for line in importlib.metadata.requires('laud-mm')]
    extra = {r.name: r.specifier for r in asked
             if r.marker is not None and r.marker.evaluate({'extra': family})}
    pins = dict(line.split('==') for path in (ROOT / 'requirements').glob('*.txt')
                for line in path.read_text().split() if '==' in line)
    for dist, low, high in FAMILIES[family].values():
        assert low in extra[dist] and high not in extra[dist]
        assert pins[dist] in extra[dist]


@pytest.mark.parametrize('version', ['0.10.7+local.84', '0.10.7.dev3', '0.10.7rc11'])
def test_suffixes_of_a_version_do_not_matter(version):
    assert find(mmengine=version) == []


def test_a_bare_gpu_machine_needs_neither_mmdet_nor_compiled_ops():
    assert find(mmcv_has_ops=False, need=('mmengine', 'mmcv'), mmdet=None, mmpretrain=None,
                torchvision=None, torchvision_has_cuda=False) == []


def test_an_installed_mmdet_must_fit_even_where_it_is_not_needed():
    assert len(find(need=('mmengine',), mmdet='2.28.2')) == 1


@pytest.mark.parametrize(('line', 'torch_cuda', 'has_cuda'), [
    pytest.param("__version__ = '0.26.0+cu130'", None, True, id='cuda'),
    pytest.param("__version__ = '0.26.0+cpu'", '13.0', False, id='cpu'),
    # A build that does not say is taken to fit.
    pytest.param("__version__ = '0.26.0'", '13.0', True, id='silent-cuda_torch'),
    pytest.param("__version__ = '0.26.0'", None, False, id='silent-cpu_torch'),
])
def test_the_build_of_torchvision_is_read_without_importing_it(
        tmp_path, monkeypatch, line, torch_cuda, has_cuda):
    (tmp_path / 'version.py').write_text(f"{line}\ngit_version = 'abc+cu999'\n")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(stack.importlib.util, 'find_spec', lambda name: spec)
    assert stack._torchvision_has_cuda(torch_cuda) is has_cuda


@pytest.mark.skipif(any(stack.importlib.util.find_spec(name) is None for name in ALL),
                    reason='mmdet and mmpretrain are not installed')
def test_this_environment_passes():
    check_stack(need=ALL)


def test_check_stack_raises_with_every_problem(monkeypatch):
    monkeypatch.setattr(stack, '_installed_versions',
                        lambda: {**VERSIONS, 'setuptools': '84.2.1', 'mmdet': '3.2.0'})
    with pytest.raises(StackError, match=r'(?s)setuptools is 84\.2\.1.*mmdet is 3\.2\.0'):
        check_stack()


def test_missing_torch_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch', None)
    with pytest.raises(StackError, match='torch does not import.*pip install torch=='):
        check_stack()


def test_as_a_script_it_needs_no_other_package_and_fails_with_the_problem():
    # -S leaves every site-packages folder out, that of torch included.
    done = subprocess.run([sys.executable, '-I', '-S', stack.__file__], capture_output=True,
                          text=True)
    assert done.returncode == 1
    assert 'torch does not import' in done.stderr and 'Traceback' not in done.stderr
