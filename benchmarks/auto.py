"""Whether `execution='auto'` is ever slower than the static net: both, and skipping, at high rates.

    benchmarks/auto.py --network resnet50 --paradigm channel --precision bf16 --json OUT
"""
import argparse

import numpy as np
import torch

from laud_mm.latency.measure import device_stamp, keep_freed_memory, measure_interleaved
from laud_mm.models.dynamic import force_rate, replay
from laud_mm.profiling.bench import BenchSetting
from laud_mm.profiling.calibrate import DTYPES
from laud_mm.utils.files import write_json
from laud_mm.utils.tables import text_table

COLUMNS = ('network', 'paradigm', 'mask_before_norm', 'batch', 'rate', 'static_p50_ms', 'auto',
           'skipping')


@torch.no_grad()
def measure(setting, args):
    """A row for each rate: medians of ratios to the static net, timed in turn."""
    torch.manual_seed(0)
    shifted = dict(mask_before_norm=True) if args.mask_before_norm else {}
    options = dict(dtype=DTYPES[args.precision], memory_format=torch.channels_last)
    net = setting.build(**shifted).to(**options)
    x = torch.randn(setting.batch, net.in_channels, *setting.image_size).to(**options)
    for rate in args.rate:
        with force_rate(net, rate):
            net(x)
        decisions = net.record.decisions

        def run(mode, static=False):
            with net.executing(mode=mode, static=static), replay(net, decisions):  # noqa: B023
                net(x)
        stats, samples = measure_interleaved(
            dict(auto=lambda: run('auto'), skipping=lambda: run('skipping'),
                 static=lambda: run('auto', True)), x.device, 2, args.repeats)
        yield dict(network=setting.network, paradigm=setting.paradigm,
                   mask_before_norm=args.mask_before_norm, batch=setting.batch, rate=rate,
                   static_p50_ms=stats['static'].p50_ms / setting.batch,
                   **{name: float(np.median(np.divide(samples[name], samples['static'])))
                      for name in ('auto', 'skipping')})


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', nargs='+', default=['resnet50'])
    parser.add_argument('--paradigm', nargs='+', default=['channel'])
    parser.add_argument('--mask-before-norm', action='store_true')
    parser.add_argument('--rate', nargs='+', type=float, default=[1, 0.9, 0.8, 0.7, 0.6, 0.5])
    parser.add_argument('--batch', nargs='+', type=int, default=[1, 8])
    parser.add_argument('--size', nargs=2, type=int, default=(224, 224), metavar=('H', 'W'))
    parser.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32')
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--json', help='write the results to this file')
    args = parser.parse_args()
    keep_freed_memory()
    rows = [row for network in args.network for paradigm in args.paradigm for batch in args.batch
            for row in measure(BenchSetting(network, paradigm, 1, batch,
                                            image_size=tuple(args.size)), args)]
    print(text_table(rows, COLUMNS))
    if args.json:
        write_json(dict(stamp=dict(device_stamp('cpu'), precision=args.precision), results=rows),
                   args.json)


if __name__ == '__main__':
    main()
