"""Time two checkouts of this project against each other, in turn, so that drift hits both.

    benchmarks/versions.py OLD_CHECKOUT NEW_CHECKOUT --paradigm layer spatial --json OUT
"""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WARM_UP = 3


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('old', type=Path, help='checkout with its operations built in place')
    parser.add_argument('new', type=Path, help='another one')
    parser.add_argument('--network', default='resnet50')
    parser.add_argument('--paradigm', nargs='+', default=['layer'])
    parser.add_argument('--rate', type=float, default=0.5)
    parser.add_argument('--batch', nargs='+', type=int, default=[1, 8])
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=20, help='turns of each checkout')
    parser.add_argument('--starts', type=int, default=7, help='fresh processes of each')
    parser.add_argument('--json', type=Path, help='write the rows to this file')
    return parser.parse_args()


def serve(network, paradigm, rate, batches):
    """Run in a checkout: for every line with a batch and a count, time so many passes."""
    import torch

    from laud_mm.latency.measure import device_stamp, keep_freed_memory
    from laud_mm.models.dynamic import force_rate
    from laud_mm.profiling.bench import BenchSetting
    keep_freed_memory()
    torch.manual_seed(0)
    paradigm = None if paradigm == 'none' else paradigm
    net = BenchSetting(network, paradigm, rate, 1).build().eval()
    net = net.to(memory_format=torch.channels_last)
    images = {batch: torch.randn(batch, 3, 224, 224).to(memory_format=torch.channels_last)
              for batch in batches}
    print(json.dumps(device_stamp('cpu')), flush=True)
    for line in sys.stdin:
        batch, count = map(int, line.split())
        times = []
        with torch.no_grad(), force_rate(net, rate):
            for _ in range(count):
                start = time.perf_counter()
                net(images[batch])
                times.append(1e3 * (time.perf_counter() - start))
        print(np.median(times[1:]), flush=True)


class Served:
    """A process in a checkout that times passes when asked."""

    def __init__(self, checkout, args, paradigm):
        env = dict(os.environ, PYTHONPATH=str(checkout.resolve()),
                   OMP_NUM_THREADS=str(args.threads))
        own = [args.network, paradigm, str(args.rate), *map(str, args.batch)]
        self.process = subprocess.Popen(
            [sys.executable, '-P', '-W', 'ignore', str(Path(__file__).resolve()), '--serve', *own],
            env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f'error: {checkout} could not be timed')
        self.stamp = json.loads(line)

    def time_ms(self, batch, count):
        """The median of so many passes, the first left out."""
        self.process.stdin.write(f'{batch} {count}\n')
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def compare(args, paradigm):
    """Rows of one paradigm, one per batch: both latencies, and the paired ratio.

    A ratio is the median over starts of the median over turns.
    """
    times = {batch: [] for batch in args.batch}
    for _ in range(args.starts):  # where a process has its memory is worth a per cent
        both = [Served(checkout, args, paradigm) for checkout in (args.old, args.new)]
        for batch, pairs in times.items():
            pairs.append(take_turns(both, batch, args.rounds))
        for one in both:
            one.process.stdin.close()
            one.process.wait()
    rows = []
    for batch, pairs in times.items():
        (old, new), ratios = np.median(pairs, (0, 1)), [np.median(p[:, 1] / p[:, 0]) for p in pairs]
        rows.append(dict(
            network=args.network, paradigm=paradigm, rate=args.rate, batch=batch,
            old_p50_ms=float(old), new_p50_ms=float(new), ratio=float(np.median(ratios)),
            ratios=[round(float(r), 4) for r in sorted(ratios)], rounds=args.rounds))
        print('{network} {paradigm} batch {batch}: old {old_p50_ms:.3f} ms, new {new_p50_ms:.3f} '
              'ms, ratio {ratio:.4f} of {ratios}'.format(**rows[-1]))
    return both[0].stamp, rows


def take_turns(both, batch, rounds):
    """Latencies (rounds, 2) of both, in turn."""
    turns = []
    for turn in range(WARM_UP + rounds):
        first = turn % 2  # whoever is second finds another's weights in the cache
        times = {i: both[i].time_ms(batch, max(12 // batch, 4)) for i in (first, 1 - first)}
        turns.append((times[0], times[1]))
    return np.array(turns[WARM_UP:])


def main():
    args, rows = parse_args(), []
    for checkout in (args.old, args.new):
        if not (checkout / 'laud_mm').is_dir():
            sys.exit(f'error: old and new must be checkouts of this project, got {checkout}')
    for paradigm in args.paradigm:
        stamp, own = compare(args, paradigm)
        rows += own
    if args.json:
        args.json.write_text(json.dumps(dict(stamp=stamp, rows=rows), indent=2) + '\n')


if __name__ == '__main__':
    if sys.argv[1:2] == ['--serve']:
        serve(*sys.argv[2:4], float(sys.argv[4]), list(map(int, sys.argv[5:])))
    else:
        main()
