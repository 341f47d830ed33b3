"""Check that the installed stack fits together, and name the fix where it does not.

Standard library only, and runnable as a script in an environment without laud_mm.
"""
import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

# family: {import name: (distribution, lowest allowed, first not allowed)}
FAMILIES = {
    'openmmlab': {
        'mmengine': ('mmengine', '0.10.4', '0.11'),
        'mmcv': ('mmcv', '2.1.0', '2.2.0'),
        'mmdet': ('mmdet', '3.3.0', '3.4'),
        'mmpretrain': ('mmpretrain', '1.2.0', '1.3'),
    },
    'onedl': {
        'mmengine': ('onedl-mmengine', '0.10.12', '0.11'),
        'mmcv': ('onedl-mmcv', '2.3.6', '2.4'),
        'mmdet': ('onedl-mmdetection', '3.5.1', '3.6'),
        'mmpretrain': ('onedl-mmpretrain', '1.3.6', '1.4'),
    },
}
SETUPTOOLS_LIMIT = 82
# The extra of laud_mm that brings a package which laud_mm can do without.
EXTRAS = {**dict.fromkeys(FAMILIES['openmmlab'], 'openmmlab'), 'timm': 'timm',
          'huggingface_hub': 'hub', 'safetensors': 'safetensors'}


class StackError(RuntimeError):
    """The installed packages do not work together."""


def is_installed(name):
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(name) is not None


def require_packages(user, *names):
    """Say what is missing, and how to install it, before an import would fail.

    Args:
        user (str): What needs the packages.
        names (str): Import names.

    Raises:
        ModuleNotFoundError: If one is not installed.
    """
    missing = [name for name in names if not is_installed(name)]
    if missing:
        fixes = sorted({f"'laud-mm[{EXTRAS[name]}]'" if name in EXTRAS else name
                        for name in missing})
        steps = ', after mmcv with its operations, see docs/install.md' * any(
            EXTRAS.get(name) == 'openmmlab' for name in missing)
        raise ModuleNotFoundError(f'{user} needs {" and ".join(missing)}, not installed here: '
                                  f'pip install {" ".join(fixes)}{steps}', name=missing[0])


def _release(version):
    return tuple(int(n) for n in re.findall(r'\d+', version.split('+')[0])[:3])


def find_families(versions):
    """The families that installed distributions belong to; the default one where none does.

    Args:
        versions (dict[str, str]): Installed distributions and their versions.

    Returns:
        list[str]: Keys of `FAMILIES`; more than one cannot work, as they share import names.
    """
    return [family for family, own in FAMILIES.items()
            if any(dist in versions for dist, _, _ in own.values())] or ['openmmlab']


def find_stack_problems(versions, torch_cuda, torchvision_has_cuda, mmcv_has_ops,
                        need=('mmengine', 'mmcv')):
    """List what is wrong with a stack.

    Args:
        versions (dict[str, str]): Installed distributions and their versions.
        torch_cuda (str | None): CUDA version that torch was built for.
        torchvision_has_cuda (bool): Whether torchvision was built for CUDA.
        mmcv_has_ops (bool): Whether mmcv carries its compiled ops.
        need (tuple[str]): Import names of what must be there.

    Returns:
        list[str]: One line per problem, each with its fix; empty when all is well.
    """
    problems = []
    if torchvision_has_cuda != bool(torch_cuda) and 'torchvision' in versions:
        built = {True: 'for CUDA', False: 'for CPU only'}
        problems.append(
            f'torch {versions["torch"]} is built {built[bool(torch_cuda)]}, torchvision '
            f'{versions["torchvision"]} {built[torchvision_has_cuda]}: install both from the '
            'same index, e.g. pip install torch==2.11.0 torchvision==0.26.0')
    if _release(versions.get('setuptools', '0'))[:1] >= (SETUPTOOLS_LIMIT,):
        problems.append(
            f'setuptools is {versions["setuptools"]}, allowed is < {SETUPTOOLS_LIMIT} (mmengine '
            "and mmcv's build import pkg_resources): pip install 'setuptools<82'")
    families = find_families(versions)
    if len(families) > 1:
        problems.append(f'{" and ".join(families)} packages are both installed, under the same '
                        'import names: pip uninstall those of one family')
    required = FAMILIES[families[-1]]
    for dist, low, high in (required[name] for name in need):
        if dist not in versions:
            problems.append(f"{dist} is missing: pip install '{dist}>={low},<{high}'")
    for dist, low, high in required.values():
        version = versions.get(dist)
        if version and not _release(low) <= _release(version) < _release(high):
            problems.append(f'{dist} is {version}, allowed is >= {low}, < {high}: '
                            f"pip install '{dist}>={low},<{high}'")
    mmcv, low, _ = required['mmcv']
    if mmcv in versions and 'mmdet' in need and not mmcv_has_ops:
        problems.append(
            f'{mmcv} has no compiled ops, which mmdet needs: MMCV_WITH_OPS=1 pip install '
            f'--no-build-isolation --no-deps --no-binary {mmcv} --force-reinstall {mmcv}=={low}')
    return problems


def _installed_versions():
    names = [dist for own in FAMILIES.values() for dist, _, _ in own.values()]
    names += ['torch', 'torchvision', 'setuptools']
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return versions


def _torchvision_has_cuda(torch_cuda):
    # torchvision itself refuses to import beside a torch of another build, so
    # its version file is read alone: 0.26.0+cu130 or 0.26.0+cpu.
    spec = importlib.util.find_spec('torchvision')
    if spec is not None and spec.submodule_search_locations:
        version_file = Path(spec.submodule_search_locations[0], 'version.py')
        build = re.search(r"__version__ = '[^'+]*\+(cu|cpu)", version_file.read_text())
        if build:
            return build[1] == 'cu'
    return bool(torch_cuda)


def check_stack(need=('mmengine', 'mmcv')):
    """Raise StackError with every problem of the installed stack and its fix.

    Args:
        need (tuple[str]): Import names of what must be there; name 'mmdet' to
            require mmcv's compiled ops as well.
    """
    try:
        import torch
    except ImportError as error:
        raise StackError(f'torch does not import ({error}): pip install torch==2.11.0') from error
    problems = find_stack_problems(
        _installed_versions(), torch.version.cuda, _torchvision_has_cuda(torch.version.cuda),
        is_installed('mmcv') and is_installed('mmcv._ext'), need)
    if problems:
        raise StackError('the installed packages do not work together:\n'
                         + '\n'.join(f'- {p}' for p in problems))


def require_stack(need=('mmengine', 'mmcv')):
    """End the program with the problems of the stack and their fixes, if it has any."""
    try:
        check_stack(need)
    except StackError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    require_stack(need=tuple(FAMILIES['openmmlab']))
