"""Compile the CUDA kernels without warnings for several architectures and list what they use.

    python tools/check_cuda.py                  # sm_80, sm_90 and sm_120
    python tools/check_cuda.py --arch 90 --only row_gemm_half

Needs nvcc, but neither torch nor a GPU. Fails at the first warning, and where a kernel
spills registers.
"""
import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1] / 'ops' / 'csrc' / 'cuda'
ARCHITECTURES = ('80', '90', '120')


def compile_kernels(source, arch, folder):
    """Compile one file; returns its (kernel, registers, spilled bytes) by ptxas' report.

    Raises:
        RuntimeError: With the compiler's output, if there is an error or a warning.
    """
    done = subprocess.run(
        ['nvcc', '-O3', '-std=c++17', '-Xcompiler', '-Wall', '-Werror', 'all-warnings',
         f'-gencode=arch=compute_{arch},code=sm_{arch}', '-Xptxas', '-v', '-c', source,
         '-o', Path(folder, f'{source.stem}_{arch}.o')], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{source.name} does not compile for sm_{arch}:\n{done.stderr}')
    return [(name, int(registers), int(spilled)) for name, spilled, registers in re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers",
        done.stderr, re.DOTALL)]


def readable(names):
    """C++ names of symbols, where there is a tool that knows them."""
    if shutil.which('c++filt') is None:
        return names
    done = subprocess.run(['c++filt', *names], capture_output=True, text=True, check=True)
    noise = re.compile(r'^void |laud::cuda::|\(anonymous namespace\)::')
    return [re.sub(r'\(.*\)$', '', noise.sub('', name)) for name in done.stdout.splitlines()]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--arch', nargs='+', default=ARCHITECTURES, help='such as 80 90 120')
    parser.add_argument('--only', help='one file, without its ending')
    parser.add_argument('--jobs', type=int, default=2)
    args = parser.parse_args(argv)
    if shutil.which('nvcc') is None:
        sys.exit('nvcc is missing: install a CUDA toolkit and put its bin folder on PATH')
    sources = sorted(KERNELS.glob(f'{args.only or "*"}.cu'))
    if not sources:
        sys.exit(f'--only must be one of {", ".join(sorted(p.stem for p in KERNELS.glob("*.cu")))}'
                 f', got {args.only}')
    spills = False
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        jobs = [(source, arch) for arch in args.arch for source in sources]
        try:
            for (_, arch), kernels in zip(jobs, pool.map(
                    lambda job: compile_kernels(*job, folder), jobs)):
                names = readable([name for name, *_ in kernels]) if kernels else []
                for name, (_, registers, spilled) in zip(names, kernels):
                    spills = spills or spilled > 0
                    print(f'sm_{arch:4} {registers:4} registers {spilled:5} bytes spilled  {name}',
                          flush=True)
        except RuntimeError as error:
            sys.exit(str(error))
    sys.exit('some kernels spill registers' if spills else 0)


if __name__ == '__main__':
    main()
