"""Measure latency: synchronised, warmed up, interleaved, in milliseconds."""
import ctypes
import math
import platform
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch

from .cuda_graphs import PlainPass, record_pass
from .machine import cpu_clock_mhz, cpu_name

# OpenMP's threads spin for milliseconds after their work. Another runtime's threads then share
# the cores with them: ResNet-50 in onnxruntime took 25 ms right after torch, 18 ms 10 ms later.
SETTLE_S = 0.01
# A GPU waits so many cycles, a tenth of a millisecond, before what is timed, so that launches
# are queued by then: else short work would be timed as the host's work of launching it.
HEAD_START_CYCLES = 150_000
LEAST_MS = 0.5  # that copies of a short program take together
MOST_COPIES = 50
CPU_SWEEP_BYTES = 8 << 20  # more than the near caches of two CPU cores hold


@dataclass(frozen=True)
class LatencyStats:
    """Latencies of one program.

    Attributes:
        mean_ms, p50_ms, p90_ms, p99_ms (float): Over the repeats.
        repeats (int): Number of timed runs.
    """
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    repeats: int

    @classmethod
    def of(cls, samples_ms):
        """Summarise a sequence of latencies in ms."""
        if not len(samples_ms):
            raise ValueError('samples_ms must hold at least one latency, got none')
        p50, p90, p99 = np.percentile(samples_ms, (50, 90, 99)).tolist()
        return cls(float(np.mean(samples_ms)), p50, p90, p99, len(samples_ms))

    def as_dict(self):
        """Plain values for JSON."""
        return asdict(self)


def keep_freed_memory():
    """Have the C library (glibc) keep memory that is freed, for the rest of the process.

    By default it gives large maps back to the system after every run, and gets fresh pages
    for the next one, which may cost more than the arithmetic on them.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: nothing is mapped by itself
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


class Timer:
    """Times one call on a device, with CUDA events on a GPU.

    Args:
        device (str | torch.device): Where the timed work runs.
    """

    def __init__(self, device):
        self.device = torch.device(device)

    def mark(self):
        """A point in time of the device's work, for `between_ms`."""
        if self.device.type != 'cuda':
            return time.perf_counter()
        # Within a CUDA graph every replay takes the time anew.
        captured = dict(external=True) if torch.cuda.is_current_stream_capturing() else {}
        event = torch.cuda.Event(enable_timing=True, **captured)
        event.record()
        return event

    def between_ms(self, start, end):
        """Time between two marks; waits for the device to reach the second."""
        if self.device.type != 'cuda':
            return (end - start) * 1e3
        end.synchronize()
        return start.elapsed_time(end)

    def time_ms(self, fn):
        """Run `fn()` and return its latency in ms, the device idle before and after."""
        if self.device.type == 'cuda':
            with torch.cuda.device(self.device):
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda.synchronize()
                torch.cuda._sleep(HEAD_START_CYCLES)
                start.record()
                fn()
                end.record()
                torch.cuda.synchronize()
                return start.elapsed_time(end)
        begin = time.perf_counter()
        fn()
        return (time.perf_counter() - begin) * 1e3


def measure_interleaved(programs, device, warmup=5, repeats=30, first=0,
                        settle=False) -> tuple[dict, dict]:
    """Time several programs in turn, so that drift of the machine hits all alike.

    Args:
        programs (dict[str, Callable]): Name to a function without arguments.
        device (str | torch.device): Where they run.
        warmup (int): Untimed runs of each first.
        repeats (int): Timed runs of each.
        first (int): Which program goes first in the first repeat; then they take turns.
        settle (bool): Before each timed run wait until the threads of the program before it
            sleep (`SETTLE_S`), and run once untimed. For programs of several runtimes, which
            have threads of their own.

    Returns:
        tuple[dict[str, LatencyStats], dict[str, list[float]]]: Summaries and
        the latencies in ms, by name; the k-th of each were timed together.
    """
    if repeats < 1 or warmup < 0:
        raise ValueError(f'repeats must be >= 1 and warmup >= 0, got {repeats} and {warmup}')
    timer, names = Timer(device), list(programs)
    for _ in range(warmup):
        for name in names:
            programs[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    for i in range(repeats):
        # Alternate who goes first: the second finds other caches.
        for name in names if (i + first) % 2 == 0 else names[::-1]:
            if settle:
                time.sleep(SETTLE_S)
                programs[name]()
            samples[name].append(timer.time_ms(programs[name]))
    return {name: LatencyStats.of(s) for name, s in samples.items()}, samples


def sweep_bytes(device):
    """Bytes to write so that the near caches of a device hold nothing of before."""
    if torch.device(device).type != 'cuda':
        return CPU_SWEEP_BYTES
    return 2 * torch.cuda.get_device_properties(device).L2_cache_size


def copies_for(one_ms):
    """How many copies of a program that takes so long are timed together."""
    return min(max(math.ceil(LEAST_MS / max(one_ms, 1e-6)), 1), MOST_COPIES)


def measure_copies(programs, device, warmup=2, repeats=10, waiting=()):
    """Time short programs in turn: many copies together, each after a sweep of the caches.

    On a GPU the copies are one CUDA graph, where a program can be captured. What the sweeps take
    is timed beside them and taken off.

    Args:
        programs (dict[str, Callable]): Name to a function without arguments.
        device (str | torch.device): Where they run.
        warmup (int): Untimed runs of the copies first.
        repeats (int): Timed runs of them.
        waiting (Sequence[str]): Programs that wait for the device and cannot be captured.

    Returns:
        tuple[dict[str, LatencyStats], dict[str, list[float]]]: As of `measure_interleaved`, per
        copy; at least 0.
    """
    timer, swept = Timer(device), torch.zeros(sweep_bytes(device) // 4, device=device)
    together, copies = {}, {}
    for name, program in programs.items():
        program()
        count = copies_for(min(timer.time_ms(program) for _ in range(3)))
        for key, body in ((name, program), (f'{name} sweeps', None)):
            def run(swept, body=body, count=count):
                for _ in range(count):
                    swept.add_(1)
                    if body is not None:
                        body()
            record = PlainPass if key in waiting else record_pass
            together[key] = record(run, swept).replay
        copies[name] = count
    _, samples = measure_interleaved(together, device, warmup, repeats)
    each = {name: np.maximum(np.subtract(samples[name], samples[f'{name} sweeps']) / count,
                             0).tolist() for name, count in copies.items()}
    return {name: LatencyStats.of(own) for name, own in each.items()}, each


def device_stamp(device):
    """What a figure was measured on: device, clock, threads and versions."""
    device = torch.device(device)
    if device.type == 'cuda':
        name, properties = torch.cuda.get_device_name(device), \
            torch.cuda.get_device_properties(device)
        clock_mhz = getattr(properties, 'clock_rate', 0) / 1000 or None
    else:
        name, clock_mhz = cpu_name(), cpu_clock_mhz()
    return dict(device=device.type, name=name, clock_mhz=clock_mhz,
                threads=torch.get_num_threads(),
                torch=torch.__version__, cuda=torch.version.cuda, python=platform.python_version())

