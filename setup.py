"""Packaging of laud_mm. The top-level `ops/` is installed as `laud_mm.ops`, through a link."""
import os
import shutil
import subprocess
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# What CUDA kernels are built for where no GPU is found; later ones run the last one's PTX.
DEFAULT_ARCHITECTURES = '8.0;9.0;12.0+PTX'
# What the OpenMMLab tools look for inside an installed package.
MIM_CONTENT = {'configs': 'configs/laud', 'tools': 'tools'}
# The studies of this repository and the zoo's page are no part of an installation.
ONLY_HERE = ('laud_mm.demo', 'laud_mm.zoo')
TOOLS_ONLY_HERE = ('run_demo.py', 'run_digits.py', 'run_fashion.py', 'run_coco_small.py',
                   'make_gallery.py', 'make_demo_data.py', 'make_model_zoo.py', 'soak.py',
                   'setup_env.py', 'check_cuda.py', 'gpu_bringup.py')
REQUIRED = ['torch>=2.4', 'numpy']  # all that the core needs, see laud_mm/framework
MIM_INDEX = ('model-index.yml', 'metafiles/*.yml')  # name configs by their place in MIM_CONTENT


def read_version():
    scope = {}
    exec((ROOT / 'laud_mm' / 'version.py').read_text(), scope)
    return scope['__version__']


class BuildWithMim(build_py):
    """Add `laud_mm/.mim`: copies in a wheel, links in an editable install."""

    def run(self):
        if not self.editable_mode:  # else a module that is gone would live on in build/
            shutil.rmtree(Path(self.build_lib, 'laud_mm'), ignore_errors=True)
        super().run()
        if self.editable_mode:
            self._fill(ROOT / 'laud_mm' / '.mim', link=True)
        else:
            self._fill(Path(self.build_lib, 'laud_mm', '.mim'), link=False)

    def _fill(self, mim, link):
        if mim.exists():
            shutil.rmtree(mim)
        for source, target in MIM_CONTENT.items():
            source, target = ROOT / source, mim / target
            target.parent.mkdir(parents=True, exist_ok=True)
            if link:
                target.symlink_to(os.path.relpath(source, target.parent))
            elif source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns(
                    '__pycache__', *TOOLS_ONLY_HERE))
        for path in (path for pattern in MIM_INDEX for path in ROOT.glob(pattern)):
            target = mim / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(path.read_text().replace('Config: configs/', 'Config: configs/laud/'))


def cuda_toolkit():
    """The folder of the CUDA toolkit, or None."""
    from torch.utils.cpp_extension import CUDA_HOME
    home, nvcc = CUDA_HOME, shutil.which('nvcc')
    if nvcc and not Path(home or '', 'include', 'cuda_runtime_api.h').exists():
        # The nvcc found first may be a script in a folder of its own: ask it.
        dry_run = subprocess.run([nvcc, '--dryrun', '-E', '-x', 'cu', os.devnull],
                                 capture_output=True, text=True).stderr
        tops = [line.split('TOP=', 1)[1] for line in dry_run.splitlines() if 'TOP=' in line]
        home = os.path.realpath(tops[0].strip()) if tops else home
    return home


def extension():
    """Arguments of `setup` that build the compiled operations; none where torch is missing.

    CUDA kernels are built where a GPU is found or FORCE_CUDA=1 asks for them, for
    the architectures of TORCH_CUDA_ARCH_LIST (default: the GPU's, or common ones
    where there is none); LAUD_MM_WITH_OPS=0 builds nothing. LAUD_MM_RELEASE=1 builds what
    may be published: for every Python, as operations use none of it, and the torch built with.
    """
    if os.environ.get('LAUD_MM_WITH_OPS', '1') == '0':
        return {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        print('laud_mm: torch cannot be imported here, so its operations are not compiled; '
              'install with --no-build-isolation to build them')
        return {}
    wanted = os.environ.get('FORCE_CUDA', '0') == '1'
    toolkit = cuda_toolkit() if wanted or torch.cuda.is_available() else None
    if wanted and toolkit is None:
        raise SystemExit('FORCE_CUDA must be 0 where no CUDA toolkit (nvcc) is found, got 1')
    sources = [str(p.relative_to(ROOT)) for folder in ('', 'common', 'cpu')
               for p in sorted((ROOT / 'ops' / 'csrc' / folder).glob('*.cpp'))]
    # torch's parallel_for is serial in an extension compiled without OpenMP.
    flags, kind = dict(cxx=['-O3', '-g0', '-std=c++17', '-fopenmp']), cpp_extension.CppExtension
    if toolkit:
        sources += [str(p.relative_to(ROOT)) for suffix in ('cpp', 'cu')
                    for p in sorted((ROOT / 'ops' / 'csrc' / 'cuda').glob(f'*.{suffix}'))]
        flags['cxx'].append('-DLAUD_WITH_CUDA')
        flags['nvcc'] = ['-O3', '-std=c++17', '--threads=2']
        kind = cpp_extension.CUDAExtension
        cpp_extension.CUDA_HOME = toolkit
        if not torch.cuda.is_available():
            os.environ.setdefault('TORCH_CUDA_ARCH_LIST', DEFAULT_ARCHITECTURES)
    release = os.environ.get('LAUD_MM_RELEASE', '0') == '1'
    found = dict(ext_modules=[kind('laud_mm.ops._C', sources, extra_compile_args=flags,
                              extra_link_args=['-fopenmp'], py_limited_api=release)],
                 cmdclass=dict(build_py=BuildWithMim, build_ext=cpp_extension.BuildExtension))
    if release:
        REQUIRED[0] = f'torch=={".".join(torch.__version__.split(".")[:2])}.*'
        found['options'] = dict(bdist_wheel=dict(py_limited_api='cp311'))
    return found


setup(
    name='laud-mm',
    version=read_version(),
    description='Latency-aware unified dynamic networks for mmdetection and mmpretrain',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.11',
    packages=find_packages(include=['laud_mm', 'laud_mm.*'],  # laud_mm/ops links to ops/
                           exclude=ONLY_HERE),
    package_data={'laud_mm': ['py.typed', 'latency/data/*.json']},
    **{'cmdclass': {'build_py': BuildWithMim}, **extension()},
    install_requires=REQUIRED,
    extras_require={
        # One of two families that share their import names, see laud_mm/utils/stack.py.
        # setuptools: mmengine imports pkg_resources at run time for `mmdet::` configs.
        'openmmlab': ['setuptools<82', 'torchvision', 'pycocotools', 'mmengine>=0.10.4,<0.11',
                      'mmcv>=2.1,<2.2', 'mmdet>=3.3,<3.4', 'mmpretrain>=1.2,<1.3'],
        'onedl': ['setuptools<82', 'torchvision', 'pycocotools',
                  'onedl-mmengine>=0.10.12,<0.11', 'onedl-mmcv>=2.3.6,<2.4',
                  'onedl-mmdetection>=3.5.1,<3.6', 'onedl-mmpretrain>=1.3.6,<1.4'],
        'calibrate': ['scipy'],
        'safetensors': ['safetensors'],
        'timm': ['timm>=1.0.20', 'torchvision'],
        'hub': ['huggingface_hub', 'safetensors'],
        'demo': ['matplotlib', 'scikit-image', 'scikit-learn', 'tensorboard'],
        'export': ['onnx', 'onnxruntime', 'onnxscript'],
        'deploy': ['nncf', 'onnx', 'onnxruntime', 'openvino'],
        'peers': ['onnx', 'onnxruntime', 'onnxscript', 'openvino'],
        'test': ['pytest', 'hypothesis', 'pytest-cov', 'psutil'],
    },
)
