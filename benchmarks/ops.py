"""Time every operation in floating point beside its reference and its dense counterpart, in turn.

    benchmarks/ops.py --threads 2 --json OUT --plot OUT.png

Sizes are those of the blocks of ResNet-50 and 101 at 224 x 224. The dense counterpart is what a
static net runs in the operation's place, on everything: the library's convolution and ReLU, or a
plain copy or sum. An exact share of units is on, at random places.
"""
import argparse
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from laud_mm import ops
from laud_mm.latency.measure import device_stamp, measure_interleaved
from laud_mm.latency.plots import figure
from laud_mm.models.dynamic.control import random_mask
from laud_mm.utils.files import write_csv, write_json
from laud_mm.utils.tables import text_table

# Stage -> channels outside and inside the bottleneck, side of the map, S.
STAGES = {1: (256, 64, 56, 4), 2: (512, 128, 28, 4), 3: (1024, 256, 14, 2), 4: (2048, 512, 7, 1)}
COLUMNS = ('op', 'variant', 'stage', 'batch', 'rate', 'kernel_ms', 'reference_ms', 'dense_ms',
           'ratio_to_reference', 'ratio_to_dense')


@dataclass(frozen=True)
class OpCase:
    """An operation on one input.

    Attributes:
        op (str): A name of `OPERATIONS`.
        run (Callable): run(operation) calls the operation or its reference.
        dense (Callable | None): What a static net runs instead; None where there is nothing.
        variant (str): Which form of the operation it is.
    """
    op: str
    run: Callable
    dense: Callable | None = None
    variant: str = ''


class Inputs:
    """Random inputs of a bottleneck block of one stage.

    Args:
        stage (int): A key of `STAGES`.
        batch (int): Images.
        rate (float): Share of patches, samples and channels on.
    """

    def __init__(self, stage, batch, rate):
        self.channels, self.width, self.side, self.s = STAGES[stage]
        n, c, w, side = batch, self.channels, self.width, self.side
        self.batch, self.rate = batch, rate
        self.x, self.y = self.map(c), self.map(w)
        self.conv1, self.conv2, self.conv3 = (
            self.conv(w, c, 1), self.conv(w, w, 3), self.conv(c, w, 1))
        grid = -(-side // self.s)
        self.mask = random_mask(torch.ones(n, grid, grid, dtype=torch.bool), rate)
        self.units = ops.active_patches(self.mask)
        self.halo = ops.halo_positions(*self.units, n, side, side, self.s)
        self.rows = torch.rand(len(self.units[0]), min(self.s, side)**2, w)
        groups = random_mask(torch.ones(n, w // 2, dtype=torch.bool), rate)
        index, count = ops.compact(groups)
        self.picks = dict(channel_index=index, channel_count=count, group_size=2)
        self.whole = ops.active_patches(torch.ones(n, 1, 1))
        self.logit = torch.randn(c), torch.zeros(1)
        self.excitation = [torch.randn(*shape) for shape in (
            (w // 4, w), (w // 4,), (w, w // 4), (w,))]
        self.packed = {name: ops.pack_conv(*getattr(self, name))
                       for name in ('conv1', 'conv2', 'conv3')}
        self.winograd = ops.pack_winograd(*self.conv2)
        self.sliceable = {name: ops.slice_ready(getattr(self, name)[0])
                          for name in ('conv1', 'conv2')}
        self.tokens = torch.randn(n, side * side, c)
        self.image = torch.rand(n, 3, 224, 224).contiguous(memory_format=torch.channels_last)
        self.stem = self.conv(64, 3, 7)
        self.token_index = random_mask(torch.ones(n * side * side), rate).nonzero()[:, 0]

    def map(self, channels):
        shape = self.batch, channels, self.side, self.side
        return torch.rand(shape).contiguous(memory_format=torch.channels_last)

    @staticmethod
    def conv(out, inputs, kernel):
        weight = torch.randn(out, inputs, kernel, kernel) / (inputs * kernel**2)**0.5
        return weight.contiguous(memory_format=torch.channels_last), torch.randn(out)


def cases(i):
    """All operations on the `Inputs` of one block."""
    n, side, s = i.batch, i.side, i.s
    pooled = i.logit[0].view(1, -1, 1, 1)
    out, rows, tokens = i.x.clone(), i.rows.clone(), i.tokens.clone()
    token_rows = torch.rand(len(i.token_index), i.channels)

    def conv(x, weights, padding=0):
        return lambda: F.relu_(F.conv2d(x, *weights, padding=padding))

    def conv3_add():
        return F.relu_(F.conv2d(i.y, *i.conv3).add_(i.x))

    def dense_mask():
        window = min(s, side)
        return F.conv2d(F.avg_pool2d(i.x, window, ceil_mode=True), pooled) >= 0

    def excite():
        hidden = F.relu(F.linear(i.y.mean((2, 3)), *i.excitation[:2]))
        return i.y * torch.sigmoid(F.linear(hidden, *i.excitation[2:]))[:, :, None, None]

    return [
        OpCase('compact', lambda op: op(i.mask.flatten(1))),
        OpCase('halo_positions', lambda op: op(*i.units, n, side, side, s)),
        OpCase('patch_mask', lambda op: op(i.x, *i.logit, s), dense_mask),
        OpCase('position_means', lambda op: op(i.x), lambda: i.x.mean((2, 3))),
        OpCase('masker_conv1x1', lambda op: op(i.x, *i.conv1, *i.logit, s,
                                               packed=i.packed['conv1']),
               lambda: (dense_mask(), conv(i.x, i.conv1)())),
        OpCase('stem_conv', lambda op: op(i.image, *i.stem, 2, True), lambda: F.max_pool2d(
            F.relu_(F.conv2d(i.image, *i.stem, stride=2, padding=3)), 3, 2, 1)),
        OpCase('pack_conv', lambda op: op(*i.conv2)),
        OpCase('pack_winograd', lambda op: op(*i.conv2)),
        OpCase('conv1x1_positions', lambda op: op(
            i.x, *i.halo, *i.conv1, packed=i.packed['conv1']), conv(i.x, i.conv1), 'patches'),
        OpCase('conv1x1_positions', lambda op: op(
            i.x, None, None, *i.conv1, packed=i.sliceable['conv1'], **i.picks),
            conv(i.x, i.conv1), 'channels'),
        OpCase('conv3x3_patches', lambda op: op(
            i.y, *i.units, *i.conv2, s, packed=i.packed['conv2']), conv(i.y, i.conv2, 1),
            'patches'),
        OpCase('conv3x3_patches', lambda op: op(
            i.y, *i.units, *i.conv2, s, packed=i.winograd, winograd=True), conv(i.y, i.conv2, 1),
            'patches, winograd'),
        OpCase('conv3x3_patches', lambda op: op(
            i.y, *i.whole, *i.conv2, side, packed=i.sliceable['conv2'], **i.picks),
            conv(i.y, i.conv2, 1), 'channels'),
        OpCase('conv1x1_add_patches_', lambda op: op(
            out, i.x, i.rows, *i.units, *i.conv3, s, packed=i.packed['conv3']), conv3_add,
            'patches'),
        OpCase('excite_patches_', lambda op: op(
            rows.copy_(i.rows), *i.units, side, side, s, *i.excitation), excite),
        OpCase('gather_tokens', lambda op: op(i.tokens, i.token_index), lambda: i.tokens.clone()),
        OpCase('scatter_add_tokens_', lambda op: op(tokens, i.token_index, token_rows),
               lambda: torch.add(i.tokens, i.tokens)),
    ]


def time_case(case, about, repeats):
    """Time an operation: a row."""
    operation = ops.OPERATIONS[case.op]
    programs = dict(kernel=lambda: case.run(operation),
                    reference=lambda: case.run(operation.reference))
    if case.dense is not None:
        programs['dense'] = case.dense
    stats, samples = measure_interleaved(programs, 'cpu', 2, repeats)
    row = dict(op=case.op, variant=case.variant, **about)
    row.update({f'{name}_ms': own.p50_ms for name, own in stats.items()})
    for name in list(programs)[1:]:
        row[f'ratio_to_{name}'] = float(np.median(np.divide(samples['kernel'], samples[name])))
    return row


def time_fused_masker(i, about, repeats):
    """Deciding and conv1: fused, or the mask first and conv1 where it says: a row."""
    def separate():
        units = ops.active_patches(ops.patch_mask(i.x, *i.logit, i.s).logical_and_(i.mask))
        halo = ops.halo_positions(*units, i.batch, i.side, i.side, i.s)
        return ops.conv1x1_positions(i.x, *halo, *i.conv1, packed=i.packed['conv1'])

    i.logit[1].fill_(1e6)  # all on, so that the forced mask decides
    stats, samples = measure_interleaved(dict(
        fused=lambda: ops.masker_conv1x1(i.x, *i.conv1, *i.logit, i.s, packed=i.packed['conv1']),
        separate=separate), 'cpu', 2, repeats)
    ratios = np.divide(samples['fused'], samples['separate'])
    return dict(about, fused_ms=stats['fused'].p50_ms, separate_ms=stats['separate'].p50_ms,
                ratio_to_separate=float(np.median(ratios)))


def plot(rows, path):
    """Plot the time over the dense counterpart's against the rate, one line per operation."""
    lines = {}
    for row in rows:
        if row.get('ratio_to_dense'):
            name = ' '.join(filter(None, (row['op'], row['variant'])))
            lines.setdefault(name, {}).setdefault(row['rate'], []).append(row['ratio_to_dense'])
    with figure(path, width=8, height=5) as axes:
        for name, points in lines.items():
            axes.plot(sorted(points), [np.median(points[r]) for r in sorted(points)], marker='o',
                      markersize=3, label=name)
        axes.axhline(1.0, color='grey', linewidth=0.8, linestyle=':')
        axes.set_yscale('log')
        axes.set_xlabel('share of units on')
        axes.set_ylabel('time / dense time, median over sizes and batches')
        axes.legend(fontsize=6)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--op', nargs='+', choices=ops.OPERATIONS, default=list(ops.OPERATIONS))
    parser.add_argument('--stage', nargs='+', type=int, choices=STAGES, default=list(STAGES))
    parser.add_argument('--batch', nargs='+', type=int, default=[1, 8])
    parser.add_argument('--rate', nargs='+', type=float, default=[0.25, 0.5, 1.0])
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, help='CPU threads; default: all cores')
    parser.add_argument('--json', help='write the results to this file')
    parser.add_argument('--csv', help='write the table to this file')
    parser.add_argument('--plot', help='write a plot to this .png, .pdf or .svg file')
    return parser.parse_args()


def main():
    args = parse_args()
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    rows, fused = [], []
    with torch.no_grad():
        for stage, batch, rate in itertools.product(args.stage, args.batch, args.rate):
            inputs, about = Inputs(stage, batch, rate), dict(stage=stage, batch=batch, rate=rate)
            rows += [time_case(case, about, args.repeats) for case in cases(inputs)
                     if case.op in args.op]
            if 'masker_conv1x1' in args.op:
                fused.append(time_fused_masker(inputs, about, args.repeats))
    print(text_table(rows, COLUMNS))
    if fused:
        print(text_table(fused, tuple(fused[0])))
    if args.json:
        stamp = dict(device_stamp('cpu'), compiled=ops.has_kernel('cpu'))
        write_json(dict(stamp=stamp, results=rows, fused_masker=fused), args.json)
    if args.csv:
        write_csv(rows, args.csv)
    if args.plot:
        plot(rows, args.plot)


if __name__ == '__main__':
    main()
