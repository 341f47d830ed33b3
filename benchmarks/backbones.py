"""Time LAUD backbones beside their static nets, at forced rates.

    benchmarks/backbones.py --network resnet101 --paradigm layer --rate 0.5 --batch 8 --json OUT

The static net is the same weights with everything on, norms folded,
channels-last, eager; the two run in turn in one process. Exact shares of units
are forced on, at random places; maskers still run and count.
"""
import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch

from laud_mm.latency.measure import device_stamp, measure_interleaved
from laud_mm.models.backbones import LAUDResNet
from laud_mm.models.dynamic import force_rate, replay
from laud_mm.specs import PARADIGMS

DEPTHS = {'resnet50': 50, 'resnet101': 101}
GRANULARITY = {'resnet50': (4, 4, 2, 1), 'resnet101': (8, 4, 7, 1)}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--network', nargs='+', default=['resnet101'], choices=DEPTHS)
    parser.add_argument('--paradigm', nargs='+', default=['layer', 'channel', 'spatial'],
                        choices=PARADIGMS)
    parser.add_argument('--rate', nargs='+', type=float, default=[0.5])
    parser.add_argument('--batch', nargs='+', type=int, default=[8])
    parser.add_argument('--size', nargs=2, type=int, default=[224, 224], metavar=('H', 'W'))
    parser.add_argument('--granularity', nargs=4, type=int,
                        help='S of each stage (spatial); default: the best of the paper')
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--threads', type=int, help='CPU threads; default: all cores')
    parser.add_argument('--json', help='write the results to this file')
    return parser.parse_args()


def bench(network, paradigm, rate, args, batch):
    """Time one setting; return a JSON-ready dict, latencies in ms per batch."""
    granularity = tuple(args.granularity or GRANULARITY[network])
    torch.manual_seed(0)
    net = LAUDResNet(DEPTHS[network], paradigm=paradigm, spatial_granularity=granularity)
    net = net.to(args.device, memory_format=torch.channels_last).eval()
    x = torch.randn(batch, 3, *args.size, device=args.device)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        with force_rate(net, rate):
            net(x)
        cost, decisions = net.record.cost(), net.record.decisions

        def static():
            with net.as_static():
                net(x)
        with replay(net, decisions):
            stats, samples = measure_interleaved(
                dict(dynamic=lambda: net(x), static=static), args.device, repeats=args.repeats)
    ratios = np.divide(samples['dynamic'], samples['static'])
    return dict(network=network, paradigm=paradigm, rate=rate, batch=batch, size=args.size,
                granularity=granularity, realised_rate=cost.mean_rate.item(),
                flops_fraction=cost.fraction.mean().item(),
                dynamic=stats['dynamic'].as_dict(), static=stats['static'].as_dict(),
                ratio_to_static=float(np.median(ratios)))


def main():
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print('network    paradigm  rate  batch  FLOPs  static ms  dynamic ms  ratio')
    results = []
    for network, paradigm, rate, batch in itertools.product(
            args.network, args.paradigm, args.rate, args.batch):
        r = bench(network, paradigm, rate, args, batch)
        results.append(r)
        print(f'{network:10} {paradigm:8} {r["realised_rate"]:5.2f} {batch:6} '
              f'{r["flops_fraction"]:6.2f} {r["static"]["p50_ms"]:10.1f} '
              f'{r["dynamic"]["p50_ms"]:11.1f} {r["ratio_to_static"]:6.3f}', flush=True)
    if args.json:
        path = Path(args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(dict(
            stamp=dict(device_stamp(args.device), precision='float32', static='eager, folded, '
                       'channels-last'), results=results), indent=2) + '\n')


if __name__ == '__main__':
    main()
