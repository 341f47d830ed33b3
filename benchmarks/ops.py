"""Time every operation in floating point beside its reference and its dense counterpart, in turn.

    benchmarks/ops.py --threads 2 --json OUT --plot OUT.png
    benchmarks/ops.py --device cuda --precision fp16 --json OUT

Sizes are those of the blocks of ResNet-50 and 101 at 224 x 224. The dense counterpart is what a
static net runs in the operation's place, on everything: the library's convolution and ReLU, or a
plain copy or sum. An exact share of units is on, at random places. Beside the times stand the
bytes and FLOPs that an operation needs at least, and how near it comes to the bandwidth and the
products measured on the device: 1 is all, more where caches serve.

On a GPU each is timed as a CUDA graph of many copies, with the caches swept before every one.
"""
import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from laud_mm import ops
from laud_mm.latency.measure import device_stamp, measure_copies, measure_interleaved
from laud_mm.latency.plots import figure
from laud_mm.models.dynamic.control import random_mask
from laud_mm.profiling.calibrate import DTYPES
from laud_mm.profiling.ceilings import measure_ceilings, share_of_ceiling
from laud_mm.utils.files import write_csv, write_json
from laud_mm.utils.tables import text_table

# Stage -> channels outside and inside the bottleneck, side of the map, S.
STAGES = {1: (256, 64, 56, 4), 2: (512, 128, 28, 4), 3: (1024, 256, 14, 2), 4: (2048, 512, 7, 1)}
COLUMNS = ('op', 'variant', 'stage', 'batch', 'rate', 'kernel_ms', 'reference_ms', 'dense_ms',
           'ratio_to_reference', 'ratio_to_dense', 'moved_mb', 'gflop', 'of_ceiling')
BATCHES = dict(cpu=[1, 8], cuda=[128])


@dataclass(frozen=True)
class OpCase:
    """An operation on one input.

    Attributes:
        op (str): A name of `OPERATIONS`.
        run (Callable): run(operation) calls the operation or its reference.
        moved (float): Bytes that are at least read and written.
        dense (Callable | None): What a static net runs instead; None where there is nothing.
        variant (str): Which form of the operation it is.
    """
    op: str
    run: Callable
    moved: float
    dense: Callable | None = None
    variant: str = ''


class Inputs:
    """Random inputs of a bottleneck block of one stage.

    Args:
        stage (int): A key of `STAGES`.
        batch (int): Images.
        rate (float): Share of patches, samples and channels on.
        device (str): Where they are.
        dtype (torch.dtype): Of maps and weights.
    """

    def __init__(self, stage, batch, rate, device='cpu', dtype=torch.float32):
        self.like = dict(device=device, dtype=dtype)
        self.channels, self.width, self.side, self.s = STAGES[stage]
        n, c, w, side = batch, self.channels, self.width, self.side
        self.batch, self.rate = batch, rate
        self.x, self.y = self.map(c), self.map(w)
        self.conv1, self.conv2, self.conv3 = (
            self.conv(w, c, 1), self.conv(w, w, 3), self.conv(c, w, 1))
        grid = -(-side // self.s)
        self.mask = random_mask(torch.ones(n, grid, grid, dtype=torch.bool, device=device), rate)
        self.units = ops.active_patches(self.mask)
        self.halo = ops.halo_positions(*self.units, n, side, side, self.s)
        self.rows = torch.rand(len(self.units[0]), min(self.s, side)**2, w, **self.like)
        groups = random_mask(torch.ones(n, w // 2, dtype=torch.bool, device=device), rate)
        index, count = ops.compact(groups)
        self.picks = dict(channel_index=index, channel_count=count, group_size=2)
        self.whole = ops.active_patches(torch.ones(n, 1, 1, device=device))
        self.logit = torch.randn(c, **self.like), torch.zeros(1, **self.like)
        self.excitation = [torch.randn(*shape, **self.like) for shape in (
            (w // 4, w), (w // 4,), (w, w // 4), (w,))]
        # A ConvNeXt block of this width.
        self.taps = torch.randn(7, 7, w, **self.like), torch.randn(w, **self.like)
        self.layers = self.conv(4 * w, w, 1), self.conv(w, 4 * w, 1)
        self.packed = {name: ops.pack_conv(*getattr(self, name))
                       for name in ('conv1', 'conv2', 'conv3')}
        self.winograd = ops.pack_winograd(*self.conv2)
        self.sliceable = {name: ops.slice_ready(getattr(self, name)[0])
                          for name in ('conv1', 'conv2')}
        self.tokens = torch.randn(n, side * side, c, **self.like)
        self.image = torch.rand(n, 3, 224, 224, **self.like).contiguous(
            memory_format=torch.channels_last)
        self.stem = self.conv(64, 3, 7)
        self.token_index = random_mask(torch.ones(n * side * side, device=device),
                                       rate).nonzero()[:, 0]

    def map(self, channels):
        shape = self.batch, channels, self.side, self.side
        return torch.rand(shape, **self.like).contiguous(memory_format=torch.channels_last)

    def conv(self, out, inputs, kernel):
        weight = torch.randn(out, inputs, kernel, kernel, **self.like) / (inputs * kernel**2)**0.5
        return weight.contiguous(memory_format=torch.channels_last), torch.randn(out, **self.like)


def cases(i):
    """All operations on the `Inputs` of one block."""
    n, side, s = i.batch, i.side, i.s
    pooled = i.logit[0].view(1, -1, 1, 1)
    out, rows, tokens = i.x.clone(), i.rows.clone(), i.tokens.clone()
    sums, layers = i.y.clone(), i.layers
    packed = dict(zip(('packed1', 'packed2'), (ops.pack_conv(*layer) for layer in layers)))
    token_rows = torch.rand(len(i.token_index), i.channels, **i.like)
    c, w, positions = i.channels, i.width, n * side**2
    half = i.conv(2 * w, w, 2)
    halo, listed = int(i.halo[1]), int(i.units[1]) * min(s, side)**2
    picked = i.picks['channel_count'].sum().item() * 2 * side**2  # values of channels that are on
    named = len(i.token_index) * c

    def moved(*values):
        return sum(values) * i.x.itemsize

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

    def depthwise():
        y = F.conv2d(i.y, i.taps[0].permute(2, 0, 1)[:, None], i.taps[1], padding=3, groups=w)
        return F.layer_norm(y.movedim(1, -1), (w,))

    def mlp():
        hidden = F.gelu(F.linear(i.y.movedim(1, -1), layers[0][0].flatten(1), layers[0][1]))
        return F.linear(hidden, layers[1][0].flatten(1), layers[1][1]).movedim(-1, 1) + i.y

    found = [
        OpCase('compact', lambda op: op(i.mask.flatten(1)),
               i.mask.numel() + 4 * int(i.mask.sum())),
        OpCase('halo_positions', lambda op: op(*i.units, n, side, side, s),
               4 * (int(i.units[1]) + halo)),
        OpCase('patch_mask', lambda op: op(i.x, *i.logit, s), moved(positions * c), dense_mask),
        OpCase('position_means', lambda op: op(i.x), moved(positions * c),
               lambda: i.x.mean((2, 3))),
        OpCase('masker_conv1x1', lambda op: op(i.x, *i.conv1, *i.logit, s,
                                               packed=i.packed['conv1']),
               moved(positions * (c + w), c * w), lambda: (dense_mask(), conv(i.x, i.conv1)())),
        OpCase('stem_conv', lambda op: op(i.image, *i.stem, 2, True),
               moved(i.image.numel(), n * 64 * 56**2),
               lambda: F.max_pool2d(
                   F.relu_(F.conv2d(i.image, *i.stem, stride=2, padding=3)), 3, 2, 1)),
        OpCase('pack_conv', lambda op: op(*i.conv2), moved(2 * 9 * w * w)),
        OpCase('pack_winograd', lambda op: op(*i.conv2), moved((9 + 16) * w * w)),
        OpCase('conv1x1_positions', lambda op: op(
            i.x, *i.halo, *i.conv1, packed=i.packed['conv1']), moved(halo * (c + w), c * w),
            conv(i.x, i.conv1), 'patches'),
        OpCase('conv1x1_positions', lambda op: op(
            i.x, None, None, *i.conv1, packed=i.sliceable['conv1'], **i.picks),
            moved(positions * c, picked, c * w), conv(i.x, i.conv1), 'channels'),
        OpCase('conv3x3_patches', lambda op: op(
            i.y, *i.units, *i.conv2, s, packed=i.packed['conv2']),
            moved((halo + listed) * w, 9 * w * w), conv(i.y, i.conv2, 1), 'patches'),
        OpCase('conv3x3_patches', lambda op: op(
            i.y, *i.units, *i.conv2, s, packed=i.winograd, winograd=True),
            moved((halo + listed) * w, 16 * w * w), conv(i.y, i.conv2, 1), 'patches, winograd'),
        OpCase('conv3x3_patches', lambda op: op(
            i.y, *i.whole, *i.conv2, side, packed=i.sliceable['conv2'], **i.picks),
            moved(2 * picked, 9 * w * w), conv(i.y, i.conv2, 1), 'channels'),
        OpCase('conv1x1_add_patches_', lambda op: op(
            out, i.x, i.rows, *i.units, *i.conv3, s, packed=i.packed['conv3']),
            moved(listed * (w + 2 * c), c * w), conv3_add, 'patches'),
        OpCase('depthwise_norm_patches', lambda op: op(i.y, *i.units, *i.taps, s, 1e-6),
               moved(2 * listed * w, 49 * w), depthwise),
        OpCase('mlp_add_patches_', lambda op: op(
            sums, i.y, i.rows, *i.units, *layers[0], *layers[1], s, **packed),
            moved(3 * listed * w, 8 * w * w), mlp),
        OpCase('patchify', lambda op: op(i.y, *half), moved(1.5 * positions * w, 8 * w * w),
               lambda: F.conv2d(i.y, *half, stride=2)),
        OpCase('excite_patches_', lambda op: op(
            rows.copy_(i.rows), *i.units, side, side, s, *i.excitation),
            moved(2 * i.rows.numel(), 2 * listed * w), excite),
        OpCase('gather_tokens', lambda op: op(i.tokens, i.token_index), moved(2 * named),
               lambda: i.tokens.clone()),
        OpCase('scatter_add_tokens_', lambda op: op(tokens, i.token_index, token_rows),
               moved(3 * named), lambda: torch.add(i.tokens, i.tokens)),
    ]
    # A GPU's kernels read weights as they are.
    return [case for case in found if i.x.is_cpu
            or not ('pack' in case.op or 'winograd' in case.variant)]


def triton_case(i):
    """The convolution of listed patches in Triton, as `cases` has that of CUDA."""
    from laud_mm.ops.triton_patches import conv3x3_patches
    known = next(case for case in cases(i) if (case.op, case.variant) == (
        'conv3x3_patches', 'patches'))

    def run(operation):
        call = conv3x3_patches if operation is ops.conv3x3_patches else operation
        return call(i.y, *i.units, *i.conv2, i.s)
    return replace(known, run=run, variant='patches, Triton')


def measure(programs, device, repeats):
    """Time programs in turn; short ones many at a time on a GPU."""
    if torch.device(device).type == 'cpu':
        return measure_interleaved(programs, device, 2, repeats)
    return measure_copies(programs, device, 2, repeats, waiting=('reference',))


def time_case(case, about, repeats, ceilings, device='cpu'):
    """Time an operation: a row."""
    operation = ops.OPERATIONS[case.op]
    programs = dict(kernel=partial(case.run, operation),
                    reference=partial(case.run, operation.reference))
    if case.dense is not None:
        programs['dense'] = case.dense
    stats, samples = measure(programs, device, repeats)
    with FlopCounterMode(display=False) as counter:
        case.run(operation)
    flops, kernel_ms = counter.get_total_flops(), stats['kernel'].p50_ms
    row = dict(op=case.op, variant=case.variant, **about)
    row.update({f'{name}_ms': own.p50_ms for name, own in stats.items()})
    for name in list(programs)[1:]:
        row[f'ratio_to_{name}'] = float(np.median(np.divide(
            samples['kernel'], np.maximum(samples[name], 1e-9))))
    return dict(row, moved_mb=case.moved / 1e6, gflop=flops / 1e9,
                of_ceiling=share_of_ceiling(kernel_ms, case.moved, flops, ceilings))


def time_fused_masker(i, about, repeats, device='cpu'):
    """Deciding and conv1: fused, or the mask first and conv1 where it says: a row."""
    def separate():
        units = ops.active_patches(ops.patch_mask(i.x, *i.logit, i.s).logical_and_(i.mask))
        halo = ops.halo_positions(*units, i.batch, i.side, i.side, i.s)
        return ops.conv1x1_positions(i.x, *halo, *i.conv1, packed=i.packed['conv1'])

    i.logit[1].fill_(6e4)  # all on, so that the forced mask decides
    stats, samples = measure(dict(
        fused=lambda: ops.masker_conv1x1(i.x, *i.conv1, *i.logit, i.s, packed=i.packed['conv1']),
        separate=separate), device, repeats)
    ratios = np.divide(samples['fused'], np.maximum(samples['separate'], 1e-9))
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


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--op', nargs='+', choices=ops.OPERATIONS, default=list(ops.OPERATIONS))
    parser.add_argument('--stage', nargs='+', type=int, choices=STAGES, default=list(STAGES))
    parser.add_argument('--batch', nargs='+', type=int, help='default: 1 8, on a GPU 128')
    parser.add_argument('--rate', nargs='+', type=float, default=[0.25, 0.5, 1.0])
    parser.add_argument('--device', choices=BATCHES, default='cpu')
    parser.add_argument('--precision', choices=DTYPES, default='fp32')
    parser.add_argument('--triton', action='store_true',
                        help='time conv3x3_patches in Triton too; needs a GPU')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--threads', type=int, help='CPU threads; default: all cores')
    parser.add_argument('--json', help='write the results to this file')
    parser.add_argument('--csv', help='write the table to this file')
    parser.add_argument('--plot', help='write a plot to this .png, .pdf or .svg file')
    args = parser.parse_args(argv)
    args.batch = args.batch or BATCHES[args.device]
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('error: --device must be cpu where torch finds no GPU, got cuda')
    if args.triton and args.device != 'cuda':
        sys.exit('error: --triton must be left out with --device cpu')
    return args


def main(argv=None):
    args = parse_args(argv)
    torch.manual_seed(0)
    if args.threads:
        torch.set_num_threads(args.threads)
    rows, fused, dtype = [], [], DTYPES[args.precision]
    with torch.no_grad():
        ceilings = measure_ceilings(args.device, dtype)
        for stage, batch, rate in itertools.product(args.stage, args.batch, args.rate):
            inputs = Inputs(stage, batch, rate, args.device, dtype)
            about = dict(stage=stage, batch=batch, rate=rate)
            chosen = [case for case in cases(inputs) if case.op in args.op]
            chosen += [triton_case(inputs)] if args.triton else []
            rows += [time_case(case, about, args.repeats, ceilings, args.device)
                     for case in chosen]
            if 'masker_conv1x1' in args.op:
                fused.append(time_fused_masker(inputs, about, args.repeats, args.device))
    print(text_table(rows, COLUMNS))
    print('Measured at most: {bandwidth_gb_s:.0f} GB/s, {tflops:.2f} TFLOP/s'.format(**ceilings))
    if fused:
        print(text_table(fused, tuple(fused[0])))
    if args.json:
        stamp = dict(device_stamp(args.device), precision=args.precision, ceilings=ceilings,
                     compiled=ops.has_kernel(args.device))
        write_json(dict(stamp=stamp, results=rows, fused_masker=fused), args.json)
    if args.csv:
        write_csv(rows, args.csv)
    if args.plot:
        plot(rows, args.plot)


if __name__ == '__main__':
    main()
