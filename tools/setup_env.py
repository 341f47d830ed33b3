"""Set up everything that the project runs on, and skip what is already there.

Standard library only, so that any Python 3.11 or 3.12 can run it:

    python3 tools/setup_env.py            # set up, then print the interpreter
    python3 tools/setup_env.py --dry-run  # only say what would be done

Two layers keep a second checkout cheap:

* the *stack* (torch, mmcv with ops, mmdet, mmpretrain) is one virtual
  environment per hash of the pins, in a per-user cache folder;
* the checkout's `.venv` only adds the checkout itself (editable) to it.

Environment variables:
    LAUD_MM_CACHE   cache folder (default: ~/.cache/laud_mm)
    LAUD_MM_WHEELS  folders with ready mmcv wheels, separated by ':'
    LAUD_MM_FAMILY  `openmmlab` (default), or `onedl`, its maintained continuation
    MAX_JOBS        compiler processes of the mmcv build (default: all cores)
"""
import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / 'requirements'
# family: the pins of its mmcv, and of the rest
FAMILIES = {'openmmlab': ('mmcv', 'openmmlab'), 'onedl': ('onedl_mmcv', 'onedl')}
PYTHON_VERSIONS = ((3, 11), (3, 12))
MMCV_CPU_MINUTES = 25


class SetupError(Exception):
    """What is missing and how to get it."""


def say(message):
    print(f'[env] {message}', file=sys.stderr, flush=True)


def cache_root():
    folder = os.environ.get('LAUD_MM_CACHE')
    try:
        if not folder:
            folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'laud_mm')
        return Path(folder).expanduser().resolve()
    except RuntimeError as error:  # no home folder
        raise SetupError(f'{error} Set LAUD_MM_CACHE to a folder with 10 GB free') from error


def family():
    """The family of packages that was asked for."""
    name = os.environ.get('LAUD_MM_FAMILY') or 'openmmlab'
    if name not in FAMILIES:
        raise SetupError(f'LAUD_MM_FAMILY must be one of {", ".join(FAMILIES)}, got {name}')
    return name


def mmcv_pin():
    """File of the requirement of mmcv, the distribution's name and version."""
    path = PINS / f'{FAMILIES[family()][0]}.txt'
    return (path, *path.read_text().strip().split('=='))


def stack_files():
    return ('build', 'torch', *FAMILIES[family()], 'demo', 'tests', 'dev')


def stack_key():
    digest = hashlib.sha256()
    for name in stack_files():
        digest.update((PINS / f'{name}.txt').read_bytes())
    return f'py{sys.version_info.major}{sys.version_info.minor}-{digest.hexdigest()[:12]}'


def find_system_problems():
    """One line per missing system package, each naming the apt package."""
    version = f'{sys.version_info.major}.{sys.version_info.minor}'
    problems = []
    if sys.version_info[:2] not in PYTHON_VERSIONS:
        problems.append(f'Python is {version}, allowed are 3.11 and 3.12: '
                        'run make with PYTHON=python3.11')
    if not Path(sysconfig.get_paths()['include'], 'Python.h').exists():
        problems.append(f'Python headers are missing: apt install python{version}-dev')
    if not (importlib.util.find_spec('venv') and importlib.util.find_spec('ensurepip')):
        problems.append(f'venv is missing: apt install python{version}-venv')
    if not (shutil.which('c++') or shutil.which('g++')):
        problems.append('a C++ compiler is missing: apt install g++')
    if not shutil.which('git'):
        problems.append('git is missing: apt install git')
    for library, package in (('libGL.so.1', 'libgl1'), ('libglib-2.0.so.0', 'libglib2.0-0')):
        try:
            ctypes.CDLL(library)
        except OSError:
            problems.append(f'{library} (needed by OpenCV) is missing: apt install {package}')
    return problems


def child_env(**changes):
    """The user's environment without what makes pip or Python look elsewhere."""
    env = {k: v for k, v in os.environ.items() if k not in (
        'PYTHONPATH', 'PYTHONHOME', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_ROOT', 'PIP_NO_BINARY',
        'PIP_ONLY_BINARY', 'PIP_REQUIRE_HASHES', 'PIP_CONSTRAINT', 'PIP_PYTHON')}
    return {**env, 'PIP_USER': '0', **changes}  # 0 also beats `user = true` of a pip.conf


def run(command, log=None, env=None):
    """Run a command with its output on stderr (or in `log`); raise on failure."""
    out = log or sys.stderr
    code = subprocess.run([str(c) for c in command], stdout=out, stderr=out,
                          env=env or child_env()).returncode
    if code:
        raise SetupError(f'this command failed with exit code {code}: '
                         + ' '.join(str(c) for c in command)
                         + (f'\nits output is in {log.name}' if log else ''))


def succeeds(command):
    return subprocess.run([str(c) for c in command], stdout=subprocess.DEVNULL,
                          stderr=subprocess.DEVNULL, env=child_env()).returncode == 0


def starts(python):
    """Whether an interpreter is there and what it was made from still is."""
    return python.exists() and succeeds([python, '-c', ''])


@contextlib.contextmanager
def locked(path):
    """Let one set-up at a time work on a cache folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say('another set-up works on this cache; waiting for it')
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def pip_install(python, *args):
    run([python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', *args])


def build_stack(python, cache):
    """Install the pinned stack into the virtual environment of `python`."""
    pip_install(python, '-r', PINS / 'build.txt')
    say('installing torch (a download of about 3 GB the first time)')
    pip_install(python, '-r', PINS / 'torch.txt')
    say('installing mmdet, mmpretrain and the test tools')
    rest = [name for name in stack_files() if name not in ('build', 'torch', mmcv_pin()[0].stem)]
    pip_install(python, *[f'-r{PINS / name}.txt' for name in rest])
    install_mmcv(python, cache)
    run([python, '-P', ROOT / 'laud_mm' / 'utils' / 'stack.py'])


def install_mmcv(python, cache):
    """Install mmcv with its compiled ops: from a wheel that works here, else from source."""
    done = subprocess.run(
        [python, '-c', 'import torch; print(torch.__version__, torch.version.cuda, '
         'torch.cuda.is_available())'], capture_output=True, text=True, env=child_env())
    if done.returncode:
        raise SetupError(f'torch was installed but does not import:\n{done.stderr.strip()}')
    version, torch_cuda, has_gpu = done.stdout.split()
    cuda = has_gpu == 'True' and has_toolkit(torch_cuda)
    kind = f'{version}-{"cuda" if cuda else "cpu"}'
    own = cache / 'wheels' / f'torch-{kind}'
    # Wheels of a foreign folder are CPU builds as far as anyone can tell from their name.
    foreign = [] if cuda else os.environ.get('LAUD_MM_WHEELS', '').split(':')
    for folder in [own, *(Path(f) for f in foreign if f)]:
        if folder.is_dir() and try_mmcv_wheel(python, folder):
            say(f'mmcv: using the wheel in {folder}')
            return
    own.mkdir(parents=True, exist_ok=True)
    build_mmcv_wheel(python, own, cuda)
    if not try_mmcv_wheel(python, own):
        raise SetupError(f'the mmcv wheel built into {own} does not import: see its build.log')


def has_toolkit(torch_cuda):
    """Whether a CUDA toolkit that fits torch is there; says so when not."""
    home = os.environ.get('CUDA_HOME') or os.environ.get('CUDA_PATH')
    # As torch looks for it: the variable, the path, the default place.
    nvcc = (Path(home, 'bin', 'nvcc') if home
            else Path(shutil.which('nvcc') or '/usr/local/cuda/bin/nvcc'))
    found = 'no nvcc'
    if nvcc.exists():
        text = subprocess.run([nvcc, '--version'], capture_output=True, text=True).stdout
        release = re.search(r'release (\d+)\.(\d+)', text)
        if release and release[1] == torch_cuda.split('.')[0]:
            return True
        found = f'{nvcc} of CUDA {release[0][8:] if release else "unknown"}'
    say(f'WARNING: a GPU but {found}: mmcv gets CPU ops only, and detectors will not train on '
        f'the GPU. Install the CUDA {torch_cuda} toolkit, set CUDA_HOME to it, remove '
        f'{cache_root() / "envs" / stack_key()} and run this again')
    return False


def try_mmcv_wheel(python, folder):
    """Install mmcv from `folder`; true when its ops then import."""
    _, name, version = mmcv_pin()
    # The file itself, not --find-links: that only adds to the user's own find-links.
    for wheel in sorted(folder.glob(f'{name.replace("-", "_")}-{version}[-+]*.whl')):
        if not succeeds([python, '-m', 'pip', 'install', '--quiet', '--force-reinstall',
                         '--no-deps', '--no-index', wheel]):
            continue  # for another Python or platform
        if succeeds([python, '-c', 'import mmcv.ops']):
            return True
        say(f'mmcv: the wheel in {folder} was built for another torch; left aside')
        run([python, '-m', 'pip', 'uninstall', '--quiet', '--yes', name])
    return False


def count_jobs(cuda):
    """Compiler processes that the cores and the memory allow."""
    wanted = os.environ.get('MAX_JOBS') or ''
    if wanted:
        if not (wanted.isdigit() and int(wanted)):
            raise SetupError(f'MAX_JOBS must be a positive number, got {wanted}')
        return int(wanted)
    memory_gb = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2 ** 30
    return max(1, min(len(os.sched_getaffinity(0)), int(memory_gb / (4 if cuda else 2))))


def build_mmcv_wheel(python, target, cuda):
    pins, name, _ = mmcv_pin()
    jobs = count_jobs(cuda)
    minutes = MMCV_CPU_MINUTES / jobs * (3 if cuda else 1)
    log_path = target / 'build.log'
    say(f'mmcv: building its ops from source with {jobs} jobs, about {minutes:.0f} minutes, '
        f'once per user (log: {log_path})')
    env = child_env(MMCV_WITH_OPS='1', MAX_JOBS=str(jobs), CFLAGS='-O2 -g0 -w',
                    FORCE_CUDA='1' if cuda else '0',
                    PATH=f'{Path(python).parent}:{os.environ["PATH"]}')
    if not cuda:
        env['CUDA_VISIBLE_DEVICES'] = ''
    done = threading.Event()
    heartbeat = threading.Thread(target=report_progress, args=(log_path, done), daemon=True)
    with open(log_path, 'w') as log:
        heartbeat.start()
        try:
            # Into a temporary folder first: a killed build must not leave half a wheel.
            part = target / 'part'
            shutil.rmtree(part, ignore_errors=True)
            run([python, '-m', 'pip', 'wheel', '-v', '--no-build-isolation', '--no-deps',
                 '--no-cache-dir', '--no-binary', name, '-w', part, '-r', pins],
                log=log, env=env)
            for wheel in part.glob('*.whl'):
                os.replace(wheel, target / wheel.name)
        finally:
            done.set()
            heartbeat.join()


def report_progress(log_path, done, every_s=30):
    start = time.monotonic()
    while not done.wait(every_s):
        steps = re.findall(r'\[(\d+)/(\d+)\]', log_path.read_text(errors='replace'))
        step = f'{steps[-1][0]} of {steps[-1][1]} files' if steps else 'getting the source'
        say(f'mmcv: {step}, {(time.monotonic() - start) / 60:.1f} min')


def ensure_stack(cache):
    """Return the interpreter of the stack's environment, built if it is not there."""
    env = cache / 'envs' / stack_key()
    python, stamp = env / 'bin' / 'python', env / '.complete'
    with locked(cache / 'envs' / 'lock'):
        if stamp.exists() and starts(python):
            return python
        problems = find_system_problems()
        if problems:
            raise SetupError('\n'.join(problems))
        say(f'setting up {env}')
        if not (python.exists() and succeeds([python, '-m', 'pip', '--version'])):
            run([sys.executable, '-m', 'venv', '--clear', env])
        build_stack(python, cache)
        stamp.touch()
    return python


def ensure_checkout(stack_python):
    """Return the interpreter of the checkout's `.venv`: the stack plus this project."""
    venv = ROOT / '.venv'
    python, stamp = venv / 'bin' / 'python', venv / '.complete'
    key = f'{stack_python}\n{ROOT}\n{hashlib.sha256((ROOT / "setup.py").read_bytes()).hexdigest()}'
    with locked(ROOT / 'build' / 'env.lock'):
        if stamp.exists() and stamp.read_text() == key and starts(python):
            return python
        ours = ROOT / 'build' / 'venv-is-ours'
        if venv.exists() and not ours.exists() and not list(venv.glob('lib/*/*/stack.pth')):
            raise SetupError(f'{venv} was not made by this tool: move it away')
        say('installing the project into .venv')
        ours.touch()
        run([sys.executable, '-m', 'venv', '--clear', '--without-pip', venv])
        site = sysconfig.get_path('purelib', 'venv', {'base': str(venv)})
        stack_site = sysconfig.get_path('purelib', 'venv', {'base': str(stack_python.parents[1])})
        Path(site, 'stack.pth').write_text(f'import site; site.addsitedir({stack_site!r})\n')
        pip_install(python, '--no-deps', '--no-build-isolation', '-e', ROOT)
        stamp.write_text(key)
    return python


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--dry-run', action='store_true', help='only say what would be done')
    args = parser.parse_args()
    try:
        cache = cache_root()
        if args.dry_run:
            env = cache / 'envs' / stack_key()
            state = 'is there' if (env / '.complete').exists() else 'would be built'
            print(f'stack {env} {state}')
            print('\n'.join(find_system_problems()) or 'system packages are there')
        else:
            print(ensure_checkout(ensure_stack(cache)))
    except (SetupError, OSError) as error:  # an OSError names the folder that cannot be written
        print(f'\nset-up stopped:\n{error}', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
