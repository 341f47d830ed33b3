import importlib.util
import os
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / 'tools' / 'setup_env.py'
VERSION = f'{sys.version_info.major}.{sys.version_info.minor}'
PIN_FILES = sorted(path.name for path in (ROOT / 'requirements').glob('*.txt'))
# What stands in for an interpreter whose pip writes a wheel and then does `ending`.
PYTHON_STUB = """#!/bin/sh
env > '{folder}/environment'
while [ "$1" != -w ]; do shift; done
mkdir -p "$2"
printf '{content}' > "$2/mmcv-2.1.0-cp311-cp311-linux_x86_64.whl"
echo '[3/7] compiling'
{ending}
"""


@pytest.fixture
def tool(monkeypatch):
    """The tool as a module, with none of the user's settings."""
    for name in ('LAUD_MM_CACHE', 'LAUD_MM_WHEELS', 'LAUD_MM_FAMILY', 'XDG_CACHE_HOME',
                 'CUDA_HOME', 'CUDA_PATH', 'MAX_JOBS'):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location('setup_env', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def idle_tool(tool, monkeypatch):
    """The tool, failing the test as soon as it starts a program."""
    monkeypatch.setattr(tool, 'subprocess', SimpleNamespace(
        run=lambda command, **kwargs: pytest.fail(f'was started: {command}')))
    return tool


# --- the key of an environment


@pytest.fixture
def pins(tool, tmp_path, monkeypatch):
    """A copy of the pin files, which the tool then reads."""
    folder = tmp_path / 'requirements'
    folder.mkdir()
    for name in PIN_FILES:
        (folder / name).write_text((ROOT / 'requirements' / name).read_text())
    monkeypatch.setattr(tool, 'PINS', folder)
    return folder


@pytest.mark.parametrize('name', PIN_FILES)
@pytest.mark.parametrize('family', ['openmmlab', 'onedl'])
def test_the_environment_key_changes_with_every_pin_file_of_the_family(tool, pins, monkeypatch,
                                                                       family, name):
    monkeypatch.setenv('LAUD_MM_FAMILY', family)
    others = {'openmmlab': ('onedl.txt', 'onedl_mmcv.txt'),
              'onedl': ('openmmlab.txt', 'mmcv.txt')}[family]
    before = tool.stack_key()
    (pins / name).write_text((pins / name).read_text() + 'another==1.0\n')
    assert (tool.stack_key() == before) == (name in others)


def test_an_unknown_family_is_named_with_what_is_allowed(tool, monkeypatch):
    monkeypatch.setenv('LAUD_MM_FAMILY', 'twodl')
    with pytest.raises(tool.SetupError, match='must be one of openmmlab, onedl, got twodl'):
        tool.stack_key()


def test_the_environment_key_changes_with_the_python_version(tool, pins, monkeypatch):
    before = tool.stack_key()
    Version = namedtuple('Version', 'major minor')
    monkeypatch.setattr(tool, 'sys', SimpleNamespace(version_info=Version(3, 99)))
    assert tool.stack_key() != before


def test_the_environment_key_changes_with_nothing_else(tool, pins, tmp_path, monkeypatch):
    before = tool.stack_key()
    (pins / 'docs.txt').write_text('sphinx==8.0\n')
    for name in PIN_FILES:
        os.utime(pins / name, (0, 0))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LAUD_MM_CACHE', str(tmp_path))
    monkeypatch.setenv('LAUD_MM_WHEELS', str(tmp_path))
    monkeypatch.setenv('MAX_JOBS', '1')
    monkeypatch.setattr(tool, 'ROOT', tmp_path)
    assert tool.stack_key() == before


# --- the cache folder


def test_the_cache_folder_follows_the_environment(tool, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert tool.cache_root() == tmp_path / 'home' / '.cache' / 'laud_mm'
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    assert tool.cache_root() == tmp_path / 'xdg' / 'laud_mm'
    monkeypatch.setenv('LAUD_MM_CACHE', str(tmp_path / 'own'))
    assert tool.cache_root() == tmp_path / 'own'


def test_a_cache_folder_may_be_relative_or_in_the_home(tool, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LAUD_MM_CACHE', '~/own')
    assert tool.cache_root() == tmp_path / 'home' / 'own'
    monkeypatch.setenv('LAUD_MM_CACHE', 'here')
    assert tool.cache_root() == tmp_path / 'here'


def test_an_empty_xdg_cache_home_counts_as_unset(tool, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('XDG_CACHE_HOME', '')
    assert tool.cache_root() == tmp_path / '.cache' / 'laud_mm'


def test_without_a_home_folder_only_the_cache_folder_must_be_named(tool, tmp_path, monkeypatch):
    def no_home():
        raise RuntimeError('Could not determine home directory.')

    monkeypatch.setattr(tool.Path, 'home', no_home)
    with pytest.raises(tool.SetupError, match='Set LAUD_MM_CACHE'):
        tool.cache_root()
    monkeypatch.setenv('LAUD_MM_CACHE', str(tmp_path))
    assert tool.cache_root() == tmp_path


def test_a_cache_that_cannot_be_written_is_named_without_traceback(
        idle_tool, tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('LAUD_MM_CACHE', str(tmp_path / 'file' / 'cache'))
    monkeypatch.setattr(sys, 'argv', ['setup_env.py'])
    assert idle_tool.main() == 1
    assert str(tmp_path / 'file') in capsys.readouterr().err


# --- what a system lacks


@pytest.fixture
def system(tool, tmp_path, monkeypatch):
    """A system that has all that is needed; names added to the set go missing."""
    missing = set()
    (tmp_path / 'include').mkdir()
    (tmp_path / 'include' / 'Python.h').touch()

    def load_library(name):
        if name in missing:
            raise OSError(f'{name}: cannot open shared object file')

    def include_folder():
        return {'include': str(tmp_path / ('empty' if 'Python.h' in missing else 'include'))}

    monkeypatch.setattr(tool.shutil, 'which',
                        lambda name: None if name in missing else f'/bin/{name}')
    monkeypatch.setattr(tool.importlib.util, 'find_spec',
                        lambda name: None if name in missing else object())
    monkeypatch.setattr(tool, 'ctypes', SimpleNamespace(CDLL=load_library))
    monkeypatch.setattr(tool, 'sysconfig', SimpleNamespace(get_paths=include_folder))
    monkeypatch.setattr(tool, 'PYTHON_VERSIONS', (sys.version_info[:2],))
    return missing


PIECES = [
    pytest.param(['Python.h'], 'Python headers are missing', f'python{VERSION}-dev', id='headers'),
    pytest.param(['venv'], 'venv is missing', f'python{VERSION}-venv', id='venv'),
    pytest.param(['ensurepip'], 'venv is missing', f'python{VERSION}-venv', id='ensurepip'),
    pytest.param(['c++', 'g++'], 'a C++ compiler is missing', 'g++', id='compiler'),
    pytest.param(['git'], 'git is missing', 'git', id='git'),
    pytest.param(['libGL.so.1'], 'libGL.so.1 (needed by OpenCV)', 'libgl1', id='libGL'),
    pytest.param(['libglib-2.0.so.0'], 'libglib-2.0.so.0 (needed', 'libglib2.0-0', id='libglib'),
]


def test_a_complete_system_has_no_problems(tool, system):
    assert tool.find_system_problems() == []


@pytest.mark.parametrize(('pieces', 'start', 'package'), PIECES)
def test_a_missing_system_piece_is_named_with_its_apt_package(
        tool, system, pieces, start, package):
    system.update(pieces)
    problem, = tool.find_system_problems()
    assert problem.startswith(start) and problem.endswith(f' missing: apt install {package}')


@pytest.mark.parametrize('compiler', ['c++', 'g++'])
def test_one_compiler_is_enough(tool, system, compiler):
    system.add(compiler)
    assert tool.find_system_problems() == []


def test_every_missing_piece_has_its_own_line(tool, system):
    for piece in PIECES:
        system.update(piece.values[0])
    assert len(tool.find_system_problems()) == len(PIECES) - 1  # venv and ensurepip are one


def test_another_python_version_is_named_with_the_allowed_ones(tool, system, monkeypatch):
    monkeypatch.setattr(tool, 'PYTHON_VERSIONS', ((2, 7),))
    problem, = tool.find_system_problems()
    assert VERSION in problem and '3.11 and 3.12' in problem and 'PYTHON=' in problem


def test_set_up_stops_at_a_missing_piece_before_it_builds(
        idle_tool, system, tmp_path, monkeypatch, capsys):
    system.update(['git', 'libGL.so.1'])
    monkeypatch.setenv('LAUD_MM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(sys, 'argv', ['setup_env.py'])
    assert idle_tool.main() == 1
    out, err = capsys.readouterr()
    assert 'apt install git\n' in err and 'apt install libgl1\n' in err
    assert out == ''  # where callers read the interpreter
    assert not (tmp_path / 'cache' / 'envs' / idle_tool.stack_key()).exists()


# --- the environment of the stack


@pytest.fixture
def steps(tool, system, monkeypatch):
    """What ensure_stack does, recorded instead of done."""
    steps = []

    def run(command, **kwargs):
        assert command[1:4] == ['-m', 'venv', '--clear']
        steps.append('venv')
        (command[4] / 'bin').mkdir(parents=True, exist_ok=True)
        (command[4] / 'bin' / 'python').touch()

    monkeypatch.setattr(tool, 'run', run)
    monkeypatch.setattr(tool, 'succeeds', lambda command: Path(command[0]).exists())
    monkeypatch.setattr(tool, 'build_stack', lambda python, cache: steps.append('build'))
    return steps


def test_a_stack_is_built_once(tool, steps, tmp_path):
    python = tool.ensure_stack(tmp_path)
    assert python == tmp_path / 'envs' / tool.stack_key() / 'bin' / 'python'
    assert tool.ensure_stack(tmp_path) == python
    assert steps == ['venv', 'build']


def test_an_interrupted_stack_is_continued(tool, steps, tmp_path, monkeypatch):
    def interrupted(python, cache):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tool, 'build_stack', interrupted)
        with pytest.raises(KeyboardInterrupt):
            tool.ensure_stack(tmp_path)
    tool.ensure_stack(tmp_path)
    assert steps == ['venv', 'build']


def test_a_stack_whose_interpreter_is_gone_is_built_again(tool, steps, tmp_path):
    python = tool.ensure_stack(tmp_path)
    python.unlink()
    assert tool.ensure_stack(tmp_path) == python
    assert steps == ['venv', 'build'] * 2


def test_a_virtual_environment_of_the_user_is_left_alone(idle_tool, tmp_path, monkeypatch):
    monkeypatch.setattr(idle_tool, 'ROOT', tmp_path)
    (tmp_path / 'setup.py').touch()
    (tmp_path / '.venv').mkdir()
    (tmp_path / '.venv' / 'mine').touch()
    with pytest.raises(idle_tool.SetupError, match='not made by this tool'):
        idle_tool.ensure_checkout(tmp_path / 'env' / 'bin' / 'python')
    assert (tmp_path / '.venv' / 'mine').exists()


def test_other_pins_get_an_environment_of_their_own(tool, steps, pins, tmp_path):
    first = tool.ensure_stack(tmp_path)
    (pins / 'torch.txt').write_text('torch==2.12.0\n')
    assert tool.ensure_stack(tmp_path) != first
    assert steps == ['venv', 'build'] * 2


# --- where mmcv's wheel comes from


class Wheels:
    """A stand-in for pip and torch: folders whose mmcv wheel works or does not.

    Attributes:
        working (set[Path]): Folders whose wheel imports.
        installed (Path | None): Folder that mmcv was installed from.
        tried (list[Path]): Folders in the order of trying.
        built (list[Path]): Folders that a wheel was built into.
        gpu (bool): Whether torch sees a GPU.
        nvcc (str): What `nvcc --version` prints.
    """

    def __init__(self):
        self.working, self.installed, self.tried, self.built = set(), None, [], []
        self.builds_work, self.gpu, self.nvcc = True, False, ''

    def add(self, folder, works):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl').touch()
        if works:
            self.working.add(folder)
        return folder

    def succeeds(self, command):
        if 'install' in command:
            # pip is given the folder, or the wheel in it.
            paths = [Path(argument) for argument in command]
            folder, = {p.parent if p.suffix == '.whl' else p for p in paths
                       if p.suffix == '.whl' or p.is_dir()}
            self.tried.append(folder)
            self.installed = folder if list(folder.glob('mmcv-*.whl')) else None
            return self.installed is not None
        return self.installed in self.working

    def run(self, command, **kwargs):
        assert 'uninstall' in command and command[-1] == 'mmcv'
        self.installed = None

    def start(self, command, **kwargs):
        text = self.nvcc if 'nvcc' in str(command[0]) else f'2.11.0+cu130 13.0 {self.gpu}'
        return SimpleNamespace(stdout=f'{text}\n', stderr='', returncode=0)

    def build(self, python, target, cuda):
        self.built.append((target, cuda))
        self.add(target, self.builds_work)


@pytest.fixture
def wheels(tool, monkeypatch):
    wheels = Wheels()
    monkeypatch.setattr(tool, 'succeeds', wheels.succeeds)
    monkeypatch.setattr(tool, 'run', wheels.run)
    monkeypatch.setattr(tool, 'build_mmcv_wheel', wheels.build)
    monkeypatch.setattr(tool, 'subprocess', SimpleNamespace(
        run=wheels.start, DEVNULL=subprocess.DEVNULL))
    return wheels


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    """A CUDA toolkit's compiler, found through CUDA_HOME."""
    path = tmp_path / 'cuda' / 'bin' / 'nvcc'
    path.parent.mkdir(parents=True)
    path.touch()
    monkeypatch.setenv('CUDA_HOME', str(tmp_path / 'cuda'))
    return path


def own_folder(tmp_path, kind='cpu'):
    return tmp_path / 'cache' / 'wheels' / f'torch-2.11.0+cu130-{kind}'


def test_a_foreign_wheel_that_does_not_import_is_skipped_and_named(
        tool, wheels, tmp_path, monkeypatch, capsys):
    broken = wheels.add(tmp_path / 'broken', works=False)
    good = wheels.add(tmp_path / 'good', works=True)
    folders = [broken, tmp_path / 'absent', good]
    monkeypatch.setenv('LAUD_MM_WHEELS', ':'.join(map(str, folders)))
    tool.install_mmcv('python', tmp_path / 'cache')
    said = capsys.readouterr().err
    assert wheels.installed == good and wheels.tried == [broken, good] and not wheels.built
    assert f'the wheel in {broken} was built for another torch' in said
    assert f'using the wheel in {good}' in said


def test_without_a_wheel_that_imports_one_is_built_and_kept(tool, wheels, tmp_path, monkeypatch):
    monkeypatch.setenv('LAUD_MM_WHEELS', str(wheels.add(tmp_path / 'broken', works=False)))
    own = own_folder(tmp_path)
    tool.install_mmcv('python', tmp_path / 'cache')
    assert wheels.installed == own and wheels.built == [(own, False)]
    tool.install_mmcv('python', tmp_path / 'cache')
    assert wheels.built == [(own, False)]


def test_an_own_wheel_comes_before_a_foreign_one(tool, wheels, tmp_path, monkeypatch):
    own = wheels.add(own_folder(tmp_path), works=True)
    monkeypatch.setenv('LAUD_MM_WHEELS', str(wheels.add(tmp_path / 'good', works=True)))
    tool.install_mmcv('python', tmp_path / 'cache')
    assert wheels.tried == [own] and not wheels.built


def test_on_a_gpu_a_foreign_wheel_is_not_trusted(tool, wheels, nvcc, tmp_path, monkeypatch):
    wheels.gpu, wheels.nvcc = True, 'Cuda compilation tools, release 13.0, V13.0.88'
    monkeypatch.setenv('LAUD_MM_WHEELS', str(wheels.add(tmp_path / 'good', works=True)))
    tool.install_mmcv('python', tmp_path / 'cache')
    assert wheels.built == [(own_folder(tmp_path, 'cuda'), True)]


def test_a_gpu_without_nvcc_gets_cpu_ops_and_says_so(tool, wheels, nvcc, tmp_path, capsys):
    wheels.gpu = True
    nvcc.unlink()
    tool.install_mmcv('python', tmp_path / 'cache')
    assert wheels.built == [(own_folder(tmp_path, 'cpu'), False)]
    assert 'no nvcc: mmcv gets CPU ops only' in capsys.readouterr().err


def test_a_toolkit_of_another_cuda_gets_cpu_ops_and_says_so(tool, wheels, nvcc, tmp_path, capsys):
    wheels.gpu, wheels.nvcc = True, 'Cuda compilation tools, release 12.4, V12.4.131'
    tool.install_mmcv('python', tmp_path / 'cache')
    assert wheels.built == [(own_folder(tmp_path, 'cpu'), False)]
    assert 'CUDA 12.4' in capsys.readouterr().err


def test_a_built_wheel_that_does_not_import_stops_the_set_up(tool, wheels, tmp_path):
    wheels.builds_work = False
    with pytest.raises(tool.SetupError, match='does not import: see its build.log'):
        tool.install_mmcv('python', tmp_path / 'cache')


@pytest.fixture
def bare_python(tmp_path, monkeypatch):
    """An environment with pip and nothing else, mmcv and the user's settings least of all."""
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    monkeypatch.delenv('PIP_FIND_LINKS', raising=False)
    folder = tmp_path / 'bare'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder], check=True)
    site, = folder.glob('lib/python*/site-packages')
    pip = Path(importlib.util.find_spec('pip').origin).parent
    (site / 'pip').symlink_to(pip, target_is_directory=True)
    return folder / 'bin' / 'python'


def write_mmcv_wheel(folder, ops):
    """Write a wheel of the pinned mmcv whose `mmcv.ops` has this source."""
    version = (ROOT / 'requirements' / 'mmcv.txt').read_text().strip().split('==')[1]
    info = f'mmcv-{version}.dist-info'
    contents = {'mmcv/__init__.py': '', 'mmcv/ops.py': ops,
                f'{info}/METADATA': f'Metadata-Version: 2.1\nName: mmcv\nVersion: {version}\n',
                f'{info}/WHEEL': 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n'}
    contents[f'{info}/RECORD'] = ''.join(f'{name},,\n' for name in [*contents, f'{info}/RECORD'])
    folder.mkdir()
    with zipfile.ZipFile(folder / f'mmcv-{version}-py3-none-any.whl', 'w') as wheel:
        for name, text in contents.items():
            wheel.writestr(name, text)
    return folder


def test_pip_leaves_no_broken_mmcv_behind(tool, bare_python, tmp_path, capfd):
    def mmcv_imports():
        return tool.succeeds([bare_python, '-c', 'import mmcv'])

    assert not tool.try_mmcv_wheel(bare_python, tmp_path)  # no wheel at all
    broken = write_mmcv_wheel(tmp_path / 'bad wheels', 'raise ImportError("undefined symbol")\n')
    assert not tool.try_mmcv_wheel(bare_python, broken)
    assert str(broken) in capfd.readouterr().err
    assert not mmcv_imports()
    assert tool.try_mmcv_wheel(bare_python, write_mmcv_wheel(tmp_path / 'good wheels', ''))
    assert mmcv_imports()


@pytest.mark.parametrize(('setting', 'value'), [
    ('PIP_FIND_LINKS', '{bad}'), ('PIP_USER', '1'), ('PIP_TARGET', '{elsewhere}'),
    ('PIP_NO_BINARY', ':all:'), ('PIP_REQUIRE_HASHES', '1'), ('PYTHONPATH', '{elsewhere}')])
def test_settings_of_the_user_do_not_lead_pip_astray(
        tool, bare_python, tmp_path, monkeypatch, setting, value):
    good = write_mmcv_wheel(tmp_path / 'good', '')
    bad = write_mmcv_wheel(tmp_path / 'bad', 'raise ImportError("undefined symbol")\n')
    elsewhere = tmp_path / 'elsewhere'
    (elsewhere / 'mmcv').mkdir(parents=True)
    (elsewhere / 'mmcv' / '__init__.py').write_text('')
    monkeypatch.setenv(setting, value.format(bad=bad, elsewhere=elsewhere))
    assert tool.try_mmcv_wheel(bare_python, good)
    assert list(bare_python.parents[1].glob('lib/python*/site-packages/mmcv/ops.py'))


# --- building mmcv's wheel


@pytest.fixture
def build(tmp_path):
    """Run build_mmcv_wheel in a process of its own; returns that and the target folder."""
    target = tmp_path / 'my wheels'
    target.mkdir()
    python = tmp_path / 'bin' / 'python'
    python.parent.mkdir()

    def build(content, ending, **settings):
        python.write_text(PYTHON_STUB.format(folder=tmp_path, content=content, ending=ending))
        python.chmod(0o755)
        # A process in the background of a script ignores Ctrl-C from birth.
        code = ('import signal, sys; from pathlib import Path; import setup_env; '
                'signal.signal(signal.SIGINT, signal.default_int_handler); '
                'setup_env.build_mmcv_wheel(sys.argv[1], Path(sys.argv[2]), cuda=False)')
        done = subprocess.run(
            [sys.executable, '-c', code, python, target], capture_output=True, text=True,
            env={**os.environ, 'PYTHONPATH': str(TOOL.parent), **settings})
        return done, target
    return build


@pytest.mark.parametrize(('ending', 'error'), [
    pytest.param('exit 1', 'failed with exit code 1', id='failed'),
    pytest.param('kill -INT $PPID; exec sleep 10', 'KeyboardInterrupt', id='interrupted'),
    pytest.param('kill -KILL $PPID', '', id='killed'),
])
def test_a_build_that_ends_early_leaves_no_wheel_and_the_next_one_works(build, ending, error):
    done, target = build('half', ending)
    assert done.returncode and error in done.stderr
    assert not list(target.glob('*.whl'))
    done, _ = build('whole', 'exit 0')
    assert done.returncode == 0
    assert [wheel.read_text() for wheel in target.glob('*.whl')] == ['whole']


def test_a_build_is_told_what_to_build_and_where_ninja_is(build, tmp_path):
    done, target = build('whole', 'exit 0', MAX_JOBS='3', CUDA_VISIBLE_DEVICES='0')
    lines = (tmp_path / 'environment').read_text().splitlines()
    environment = dict(line.split('=', 1) for line in lines if '=' in line)
    assert environment['MMCV_WITH_OPS'] == '1' and environment['MAX_JOBS'] == '3'
    assert environment['FORCE_CUDA'] == '0' and environment['CUDA_VISIBLE_DEVICES'] == ''
    assert environment['PATH'].startswith(f'{tmp_path / "bin"}:')
    assert '3 jobs' in done.stderr and str(target / 'build.log') in done.stderr
    assert '[3/7] compiling' in (target / 'build.log').read_text()


def test_a_wheel_left_by_a_killed_build_of_other_pins_is_thrown_away(build, tmp_path):
    part = tmp_path / 'my wheels' / 'part'
    part.mkdir(parents=True)
    (part / 'mmcv-2.0.1-cp311-cp311-linux_x86_64.whl').write_text('half')
    _, target = build('whole', 'exit 0')
    assert [wheel.read_text() for wheel in target.glob('*.whl')] == ['whole']


@pytest.mark.parametrize('jobs', ['all', '0', '-2', '1.5'])
def test_max_jobs_must_be_a_positive_number(tool, monkeypatch, jobs):
    monkeypatch.setenv('MAX_JOBS', jobs)
    with pytest.raises(tool.SetupError, match=f'MAX_JOBS must be a positive number, got {jobs}'):
        tool.count_jobs(cuda=False)


def test_progress_names_the_files_done(tool, tmp_path, capsys):
    log = tmp_path / 'build.log'
    log.write_text('[1/7] c++ a\n[5/7] c++ b\n')
    waits = iter([False, True])
    tool.report_progress(log, SimpleNamespace(wait=lambda seconds: next(waits)))
    assert 'mmcv: 5 of 7 files' in capsys.readouterr().err


# --- the command line


@pytest.mark.parametrize('there', [False, True], ids=['absent', 'there'])
def test_a_dry_run_says_what_would_be_done_and_does_nothing(
        idle_tool, system, tmp_path, monkeypatch, capsys, there):
    cache = tmp_path / 'cache'
    env = cache / 'envs' / idle_tool.stack_key()
    if there:
        env.mkdir(parents=True)
        (env / '.complete').touch()
    system.add('git')
    monkeypatch.setenv('LAUD_MM_CACHE', str(cache))
    monkeypatch.setattr(sys, 'argv', ['setup_env.py', '--dry-run'])
    assert idle_tool.main() == 0
    assert capsys.readouterr().out.splitlines() == [
        f'stack {env} {"is there" if there else "would be built"}',
        'git is missing: apt install git']
    assert cache.exists() == there


def test_the_tool_needs_only_the_standard_library(tmp_path):
    done = subprocess.run(
        [sys.executable, '-I', '-S', TOOL, '--dry-run'], capture_output=True, text=True,
        cwd=tmp_path, env={**os.environ, 'LAUD_MM_CACHE': str(tmp_path / 'cache')})
    assert done.returncode == 0, done.stderr
    assert f'stack {tmp_path / "cache"}' in done.stdout and 'would be built' in done.stdout
    assert not list(tmp_path.iterdir())
