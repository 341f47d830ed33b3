"""What tools/gpu_bringup.py runs: five stages of lines that hold, do not hold, or were not done."""
from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from laud_mm.utils.files import write_json
from laud_mm.utils.tables import text_table

ROOT = Path(__file__).resolve().parents[2]
SANITIZERS = ('memcheck', 'racecheck', 'synccheck', 'initcheck')
PARADIGMS = ('layer', 'spatial', 'channel')
# Most of the compiled static net's time that ResNet-101 may take, by paradigm and rate.
TARGETS = {('layer', 0.5): 0.62, ('spatial', 0.5): 0.75, ('channel', 0.5): 1.0,
           ('layer', 0.4): 0.50}
TESTS = ('tests/test_ops/test_devices.py', 'tests/test_models/test_executors.py',
         'tests/test_models/test_transformer_executors.py',
         'tests/test_latency/test_calibration.py')
PROFILED = ('row_gemm_kernel', 'halo_flags_kernel')  # kernels that Nsight looks at
NAMES = {True: 'pass', False: 'FAIL', None: 'not done'}


class NotDone(Exception):
    """Why a line could not be done here."""


class DoesNotHold(Exception):
    """What was found instead."""


@dataclass(frozen=True)
class Sizes:
    """How much a bring-up computes.

    Attributes:
        device (str): Where.
        network (str): What is timed.
        batch (int): Images.
        image_size (tuple[int, int]): Height and width.
        precision (str): Of maps and weights.
        rates (tuple[float, ...]): Shares of units on.
        repeats (int): Timed runs.
        nets (int): Random nets of the calibration.
        stages (tuple[int, ...]): Of the network, whose operations are timed.
    """
    device: str
    network: str
    batch: int
    image_size: tuple[int, int]
    precision: str
    rates: tuple[float, ...]
    repeats: int
    nets: int
    stages: tuple[int, ...]


FULL = Sizes('cuda', 'resnet101', 128, (224, 224), 'fp16', (0.25, 0.4, 0.5, 0.75, 1.0), 30, 60,
             (1, 2, 3, 4))
REHEARSAL = Sizes('cpu', 'resnet50', 1, (64, 64), 'fp32', (0.5,), 1, 12, (4,))


class StageReport:
    """The lines of one stage, in a file that is written anew after each.

    Args:
        path (str | Path): The file.
        stage (int): Its number.
        sizes (Sizes): What is computed.
        minutes (float): For the whole stage.
    """

    def __init__(self, path: str | Path, stage: int, sizes: Sizes, minutes: float):
        self.path, self.sizes = Path(path), sizes
        self.end = time.monotonic() + 60 * minutes
        self.content: dict[str, Any] = dict(stage=stage, title=STAGES[stage][0],
                                            stamp=stamp(sizes.device), sizes=asdict(sizes),
                                            lines=[])
        self.write()

    def write(self) -> None:
        """Write the file, complete."""
        write_json(self.content, self.path)

    @property
    def folder(self) -> Path:
        """Where files of the stage go."""
        return self.path.parent

    @property
    def seconds_left(self) -> float:
        """Of the stage."""
        return max(self.end - time.monotonic(), 1.0)

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU is asked for."""
        return self.sizes.device == 'cuda'

    def line(self, name: str, run: Callable[[], Any]) -> Any:
        """Do one thing; note how it went, whatever happens, and what it returned.

        Returns:
            What `run` returned; None where it did not hold or was not done.
        """
        start, found, passed = time.monotonic(), None, None
        try:
            if self.on_gpu and not has_gpu():
                raise NotDone('no GPU: torch finds no CUDA device')
            found = detail = run()
            passed = True
        except NotDone as reason:
            detail = str(reason)
        except Exception as error:  # the next line is done all the same
            passed = False
            own = isinstance(error, DoesNotHold)
            detail = str(error) if own else f'{type(error).__name__}: {error}'
        seconds = round(time.monotonic() - start, 1)
        self.content['lines'].append(dict(name=name, passed=passed, seconds=seconds,
                                          detail=detail))
        print(f'{NAMES[passed]:8}  {name} ({seconds} s)'
              + f': {detail}' * (passed is not True), flush=True)
        self.write()
        return found

    def command(self, *args: Any, env: dict | None = None) -> str:
        """Run a command in the checkout, within the time left; returns what it printed.

        Raises:
            DoesNotHold: If it fails or takes too long, with the end of what it printed.
        """
        paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
        try:
            done = subprocess.run(
                [str(a) for a in args], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, timeout=self.seconds_left,
                env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths), **(env or {})))
        except subprocess.TimeoutExpired as late:
            raise DoesNotHold('no end within the time of the stage: '
                              + _tail(late.stdout)) from late
        if done.returncode:
            raise DoesNotHold(f'exit status {done.returncode}: {_tail(done.stdout)}')
        return done.stdout


def _read(path):
    return json.loads(Path(path).read_text())


def _tail(text, lines=12):
    text = text.decode(errors='replace') if isinstance(text, bytes) else text or ''
    return '\n'.join(text.strip().splitlines()[-lines:])


def has_gpu() -> bool:
    """Whether torch finds a CUDA device."""
    import torch
    return torch.cuda.is_available()


def found(tool: str) -> str:
    """The path of a program.

    Raises:
        NotDone: If there is none.
    """
    path = shutil.which(tool)
    if path is None:
        raise NotDone(f'{tool} is missing')
    return path


def stamp(device: str) -> dict:
    """What results were made on: commit, GPU, driver, versions."""
    import torch

    def asked(*command):
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True,
                                  timeout=60).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None
    gpu = driver = None
    if device == 'cuda' and torch.cuda.is_available():
        gpu = torch.cuda.get_device_name()
        driver = asked('nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader')
    commit = asked('git', 'rev-parse', 'HEAD')
    return dict(commit=commit, changed=bool(asked('git', 'status', '--porcelain', '-uno')),
                device=device, gpu=gpu, driver=driver, torch=torch.__version__,
                cuda=torch.version.cuda, python=platform.python_version(), ceilings=None)


def note_ceilings(report: StageReport) -> dict:
    """Measure the ceilings of the device into the stamp."""
    import torch

    from laud_mm.profiling.calibrate import DTYPES
    from laud_mm.profiling.ceilings import measure_ceilings
    ceilings = measure_ceilings(report.sizes.device, DTYPES[report.sizes.precision])
    if report.on_gpu:
        torch.cuda.empty_cache()
    report.content['stamp']['ceilings'] = ceilings
    return ceilings


def build_and_test(report: StageReport) -> None:
    """Stage 1: build the operations, and run every test that needs a GPU."""
    def build():
        if not report.on_gpu:
            raise NotDone('a rehearsal builds nothing')
        found('nvcc')
        report.command(sys.executable, 'setup.py', 'build_ext', '--inplace',
                       env=dict(FORCE_CUDA='1'))

    def serves():
        code = f"from laud_mm import ops; assert ops.has_kernel('{report.sizes.device}')"
        report.command(sys.executable, '-c', code)

    def tests():
        for name in ('pytest', 'hypothesis'):
            if importlib.util.find_spec(name) is None:
                raise NotDone(f'{name} is missing; stage 2 checks the kernels without it')
        chosen = 'cuda or gpu' if report.on_gpu else 'replayed and layer and cpu'
        path = report.folder / 'tests.xml'
        report.command(sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-k', chosen,
                       f'--junitxml={path}', *TESTS[:None if report.on_gpu else 1])
        suite = next(ElementTree.parse(path).iter('testsuite'))
        counts = {name: int(suite.get(name, 0)) for name in ('tests', 'skipped')}
        if counts['tests'] == 0 or report.on_gpu and counts['skipped']:
            raise DoesNotHold(f'every test must run, got {counts}')
        return counts
    report.line('the operations are built', build)
    report.line(f'kernels serve {report.sizes.device}', serves)
    report.line('tests on the device', tests)


def sanitise(report: StageReport) -> None:
    """Stage 2: kernels at stage sizes, under the sanitizers too, and replays of graphs."""
    checks = (sys.executable, '-m', 'laud_mm.profiling.gpu_checks', report.sizes.device)

    def under(tool):
        if not report.on_gpu:
            raise NotDone('sanitizers watch a GPU')
        # The caching allocator would hide reads beyond a tensor.
        return _tail(report.command(
            found('compute-sanitizer'), '--tool', tool, '--error-exitcode', 9, *checks,
            env=dict(PYTORCH_NO_CUDA_MEMORY_CACHING='1')), 2)

    def replay(paradigm):
        import torch

        from laud_mm.profiling.bench import BenchSetting
        from laud_mm.profiling.calibrate import DTYPES
        from laud_mm.profiling.gpu_checks import replays_differ
        sizes = report.sizes
        dtype = DTYPES[sizes.precision]
        with torch.no_grad():
            net = BenchSetting(sizes.network, paradigm, 0.5, 8).build().to(sizes.device, dtype)
            images = torch.randn(2, 8, 3, *sizes.image_size, device=sizes.device).to(dtype)
            wrong = replays_differ(net, *images)
        if wrong:
            raise DoesNotHold('others than the pass itself: ' + ', '.join(wrong))
    report.line('kernels at stage sizes equal float64',
                lambda: _tail(report.command(*checks), 2))
    for paradigm in PARADIGMS:
        report.line(f'a replayed graph equals the pass: {paradigm}',
                    lambda paradigm=paradigm: replay(paradigm))
    for tool in SANITIZERS:
        report.line(f'compute-sanitizer {tool}', lambda tool=tool: under(tool))


def measure_operations(report: StageReport) -> None:
    """Stage 3: every operation against the ceilings, and Nsight on two kernels."""
    sizes, program = report.sizes, ('benchmarks/ops.py', '--device', report.sizes.device)
    program = (sys.executable, *program, '--precision', sizes.precision, '--rate', '0.5')

    def operations():
        path = report.folder / 'ops.json'
        report.command(*program, '--stage', *sizes.stages, '--batch', sizes.batch, '--repeats',
                       sizes.repeats, '--json', path)
        return dict(file=path.name, results=len(_read(path)['results']))

    def in_triton():
        if not report.on_gpu:
            raise NotDone('Triton compiles for a GPU')
        path = report.folder / 'triton.json'
        report.command(*program, '--stage', *sizes.stages, '--batch', sizes.batch, '--repeats',
                       sizes.repeats, '--op', 'conv3x3_patches', '--triton', '--json', path)
        return {'{stage} {variant}'.format(**row): row['kernel_ms']
                for row in _read(path)['results']}

    def profile(kernel):
        if not report.on_gpu:
            raise NotDone('Nsight profiles a GPU')
        return report.command(
            found('ncu'), '--kernel-name', f'regex:{kernel}', '--launch-count', 3, '--section',
            'SpeedOfLight', '--section', 'Occupancy', *program, '--stage', 3, '--batch',
            sizes.batch, '--repeats', 1, '--op', 'conv3x3_patches', 'halo_positions')
    report.line('operations against the ceilings', operations)
    report.line('the 3x3 convolution in Triton beside it', in_triton)
    for kernel in PROFILED:
        report.line(f'Nsight Compute on {kernel}', lambda kernel=kernel: profile(kernel))


def compare_networks(report: StageReport) -> None:
    """Stage 4: a network that skips over the compiled static one, at rates."""
    sizes, rows = report.sizes, report.content.setdefault('results', [])

    def start():
        from laud_mm.profiling.rates import RateBench
        return RateBench(sizes.network, sizes.batch, sizes.device, sizes.precision,
                         sizes.image_size, sizes.repeats)
    bench = report.line('the static net is compiled', start)

    def timed(paradigm, rate):
        if bench is None:
            raise NotDone('the static net was not compiled')
        rows.append(bench.time(paradigm, rate))
        return rows[-1]
    for setting in ((p, r) for p in PARADIGMS for r in sizes.rates):
        report.line('{} {} at {} is timed'.format(sizes.network, *setting),
                    lambda setting=setting: timed(*setting))

    def within(setting, target):
        if not report.on_gpu:
            raise NotDone('targets are for a GPU')
        ratio = next((row['ratio'] for row in rows
                      if (row['paradigm'], row['rate']) == setting), None)
        if ratio is None:
            raise NotDone('it was not timed')
        if ratio > target:
            raise DoesNotHold(f'{ratio:.3f}')
        return ratio
    for setting, target in TARGETS.items():
        report.line('{} at {} takes at most {} of the static net'.format(*setting, target),
                    lambda setting=setting, target=target: within(setting, target))


def plan_and_calibrate(report: StageReport) -> None:
    """Stage 5: a plan and a calibration of this device."""
    sizes = report.sizes
    on = ('--device', sizes.device, '--precision', sizes.precision)
    latency = (sys.executable, 'tools/latency.py')

    def plan():
        path = report.folder / 'plan.json'
        report.command(*latency, 'plan', '--network', sizes.network, '--paradigm', *PARADIGMS,
                       '--size', *sizes.image_size, '--batch', sizes.batch, '--repeats',
                       min(sizes.repeats, 9), '--out', path, *on)
        return dict(file=path.name, blocks=len(_read(path)['blocks']))

    def calibration():
        path = report.folder / 'calibration.json'
        report.command(*latency, 'calibrate', '--nets', sizes.nets, '--held-out', 0.2, '--seconds',
                       0.1, '--repeats', min(sizes.repeats, 7), '--out', path, *on)
        return dict(file=path.name, validation=_read(path)['validation'][-1])
    report.line('a plan is measured', plan)
    report.line('a calibration is measured', calibration)


# Title, minutes, what it runs.
STAGES: dict[int, tuple[str, float, Callable[[StageReport], None]]] = {
    1: ('build and test', 5, build_and_test),
    2: ('sanitizers and replays', 8, sanitise),
    3: ('operations', 6, measure_operations),
    4: ('networks', 9, compare_networks),
    5: ('plan and calibration', 10, plan_and_calibrate),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of tools/gpu_bringup.py."""
    parser.add_argument('--stage', type=int, nargs='+', choices=STAGES, default=list(STAGES),
                        help='which of them; default: all')
    parser.add_argument('--out', default='work_dirs/gpu_bringup', help='folder of the results')
    parser.add_argument('--rehearse', action='store_true',
                        help='go through it on the CPU at small sizes, to see that it runs')
    parser.add_argument('--here', action='store_true',
                        help='run stages in this process, without a summary')


def run(args: argparse.Namespace) -> int:
    """Run stages, each in a process of its own.

    Returns:
        int: Exit status: 0 where all lines hold, 1 where one does not, 2 where some were not
        done.
    """
    for stage in args.stage:
        if args.here:
            run_stage(stage, args.out, args.rehearse)
        else:
            start_stage(stage, args)
    return 0 if args.here else summarise(args.out, args.stage)


def stage_file(out: str | Path, stage: int) -> Path:
    """Where a stage's results are."""
    return Path(out).resolve() / f'stage{stage}.json'


def run_stage(stage: int, out: str | Path, rehearse: bool) -> None:
    """Run a stage in this process."""
    title, minutes, body = STAGES[stage]
    print(f'stage {stage}: {title}, at most {minutes} minutes', flush=True)
    report = StageReport(stage_file(out, stage), stage, REHEARSAL if rehearse else FULL, minutes)
    report.line('ceilings of the device', lambda: note_ceilings(report))
    body(report)
    report.content['complete'] = True
    report.write()


def start_stage(stage: int, args: argparse.Namespace) -> None:
    """Run a stage in a process of its own: what breaks a device's context breaks one stage."""
    path, minutes = stage_file(args.out, stage), STAGES[stage][1]
    path.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / 'tools' / 'gpu_bringup.py'), '--here', '--stage',
               str(stage), '--out', str(path.parent), *['--rehearse'] * args.rehearse]
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    try:
        # A line that is under way at the end gets a minute more.
        status: Any = subprocess.run(command, timeout=60 * minutes + 60, cwd=ROOT, env=dict(
            os.environ, PYTHONPATH=os.pathsep.join(paths))).returncode
    except subprocess.TimeoutExpired:
        status = f'no end within {minutes} minutes'
    content = _read(path) if path.exists() else dict(
        stage=stage, title=STAGES[stage][0], stamp=None, lines=[])
    if not content.get('complete'):
        content['lines'].append(dict(name='the stage comes to its end', passed=False, seconds=0,
                                     detail=f'exit status {status}'))
        write_json(content, path)


def summarise(out: str | Path, stages: list[int]) -> int:
    """Print how every line went, and write it to summary.json; returns the exit status."""
    rows: list[dict] = []
    for stage in stages:
        content = _read(stage_file(out, stage))
        rows += [dict(stage=stage, line=line['name'], result=NAMES[line['passed']],
                      seconds=line['seconds'],
                      why='' if line['passed'] else str(line['detail']).split('\n')[0])
                 for line in content['lines']]
    write_json(dict(lines=rows), stage_file(out, stages[0]).with_name('summary.json'))
    print(text_table(rows, ('stage', 'line', 'result', 'seconds', 'why')))
    counts = {name: sum(row['result'] == name for row in rows) for name in NAMES.values()}
    print(', '.join(f'{count} {name}' for name, count in counts.items()))
    return 1 if counts['FAIL'] else 2 if counts['not done'] else 0
