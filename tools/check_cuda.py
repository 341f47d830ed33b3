"""Compile the CUDA kernels without warnings for several architectures and list what they use.

    python tools/check_cuda.py                  # sm_80, sm_90 and sm_120
    python tools/check_cuda.py --arch 90 --only row_gemm_half
    python tools/check_cuda.py --table docs/kernels.json      # note what kernels use
    python tools/check_cuda.py --markdown docs/kernels.json   # the table of docs/ops.md

Needs nvcc, but neither torch nor a GPU. Fails at the first warning, and where a kernel
spills registers.
"""
import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[1] / 'ops' / 'csrc' / 'cuda'
ARCHITECTURES = ('80', '90', '120')


# What a multiprocessor has: bytes of shared memory, and of one block; threads; blocks.
MULTIPROCESSORS = {'80': (164 << 10, 163 << 10, 2048, 32), '90': (228 << 10, 227 << 10, 2048, 32),
                   '120': (100 << 10, 99 << 10, 1536, 24)}
REGISTERS, RESERVED = 65536, 1 << 10  # of a multiprocessor; shared memory that each block costs
ROW_BYTES, CHUNK = 64, 16  # of a stage of the pipeline in row_gemm.cuh


@dataclass(frozen=True)
class Kernel:
    """What a kernel uses of a multiprocessor.

    Attributes:
        arch (str): Such as '90'.
        name (str): With its template's arguments.
        registers (int): Of a thread.
        spilled (int): Bytes of registers that went to memory.
        static_shared (int): Bytes of shared memory that the kernel declares.
        threads (int): Of a block.
    """
    arch: str
    name: str
    registers: int
    spilled: int
    static_shared: int
    threads: int

    @property
    def dynamic_shared(self):
        """Bytes that the launcher asks for, where the addend of a product is prefetched."""
        tile = _tile(self.name)
        if tile is None:
            return 0
        rows, columns, *_, stages = tile
        size = 4 if '<float' in self.name else 2
        pipeline = stages * (rows + columns) * ROW_BYTES
        results = rows * (columns * size + CHUNK)
        apart = pipeline + results
        most = MULTIPROCESSORS[self.arch][1]
        return apart if apart + self.static_shared <= most else max(pipeline, results)

    @property
    def blocks(self):
        """Blocks that fit a multiprocessor together."""
        shared, _, threads, blocks = MULTIPROCESSORS[self.arch]
        warps = self.threads // 32
        each = -(-self.registers // 8) * 8 * 32  # of a warp: given in 256
        used = self.static_shared + self.dynamic_shared + RESERVED
        return min(REGISTERS // each // warps, shared // used, threads // self.threads, blocks)

    def row(self):
        """Plain values for JSON."""
        return dict(asdict(self), dynamic_shared=self.dynamic_shared, blocks=self.blocks)


def _tile(name):
    """Rows, columns, those of a warp, blocks and stages of a product; None of other kernels."""
    found = re.search(r'Tile<(\d+), (\d+), (\d+), (\d+), (\d+), (\d+)', name)
    return found and tuple(map(int, found.groups()))


def threads_of(name, source):
    """Threads of a block, as the source declares them."""
    tile = _tile(name)
    if tile:
        return 32 * (tile[0] // tile[2]) * (tile[1] // tile[3])
    kernel = re.match(r'\w+', name).group()
    constant = re.search(rf'__launch_bounds__\((\w+)[^)]*\)\s+{kernel}\b', source).group(1)
    return int(re.search(rf'\b{constant} = (\d+)', source).group(1))


def compile_kernels(source, arch, folder):
    """Compile one file: its `Kernel`s, by ptxas' report.

    Raises:
        RuntimeError: With the compiler's output, if there is an error or a warning.
    """
    done = subprocess.run(
        ['nvcc', '-O3', '-std=c++17', '-Xcompiler', '-Wall', '-Werror', 'all-warnings',
         f'-gencode=arch=compute_{arch},code=sm_{arch}', '-Xptxas', '-v', '-c', source,
         '-o', Path(folder, f'{source.stem}_{arch}.o')], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{source.name} does not compile for sm_{arch}:\n{done.stderr}')
    found = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
        r'(?:[^\n]*?(\d+) bytes smem)?', done.stderr, re.DOTALL)
    names = readable([name for name, *_ in found]) if found else []
    text = source.read_text()
    return [Kernel(arch, name, int(registers), int(spilled), int(shared or 0),
                   threads_of(name, text))
            for name, (_, spilled, registers, shared) in zip(names, found)]


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
    parser.add_argument('--table', help='note what kernels use in this JSON file')
    parser.add_argument('--markdown', help='print this file of --table, and compile nothing')
    args = parser.parse_args(argv)
    if args.markdown:
        print(markdown(json.loads(Path(args.markdown).read_text())))
        return
    if shutil.which('nvcc') is None:
        sys.exit('nvcc is missing: install a CUDA toolkit and put its bin folder on PATH')
    sources = sorted(KERNELS.glob(f'{args.only or "*"}.cu'))
    if not sources:
        sys.exit(f'--only must be one of {", ".join(sorted(p.stem for p in KERNELS.glob("*.cu")))}'
                 f', got {args.only}')
    kernels = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        jobs = [(source, arch) for arch in args.arch for source in sources]
        try:
            for made in pool.map(lambda job: compile_kernels(*job, folder), jobs):
                for kernel in made:
                    print(f'sm_{kernel.arch:4} {kernel.registers:4} registers {kernel.spilled:5} '
                          f'bytes spilled {kernel.blocks:3} blocks  {kernel.name}', flush=True)
                kernels += made
        except RuntimeError as error:
            sys.exit(str(error))
    if args.table:
        note(kernels, Path(args.table))
    sys.exit('some kernels spill registers' if any(k.spilled for k in kernels) else 0)


def note(kernels, path):
    """Enter kernels into a file, in place of what it said of them."""
    rows = {(row['arch'], row['name']): row
            for row in (json.loads(path.read_text()) if path.exists() else [])}
    rows.update({(k.arch, k.name): k.row() for k in kernels})
    ordered = sorted(rows.values(), key=lambda row: (row['name'], int(row['arch'])))
    path.write_text(json.dumps(ordered, indent=1) + '\n')


def markdown(rows):
    """Kernels by architecture: registers, shared memory and blocks, in Markdown."""
    kernels: dict = {}
    for row in rows:
        kernels.setdefault((row['name'], row['threads']), {})[row['arch']] = row
    archs = sorted({row['arch'] for row in rows}, key=int)
    lines = ['| kernel | threads | ' + ' | '.join(f'sm_{arch}' for arch in archs) + ' |',
             '|---|---|' + '---|' * len(archs)]
    for (name, threads), own in sorted(kernels.items()):
        cells = []
        for row in (own[arch] for arch in archs):
            shared = (row['static_shared'] + row['dynamic_shared']) / 1024
            cells.append(f"{row['registers']}, {shared:.0f}, {row['blocks']}")
        lines.append(f'| `{name}` | {threads} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
