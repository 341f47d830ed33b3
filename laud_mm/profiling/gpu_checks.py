"""What a GPU's kernels must hold, on sizes of real networks: equal to float64, and to a replay.

    python -m laud_mm.profiling.gpu_checks

runs every check of the operations once, for example under compute-sanitizer.
"""
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from laud_mm import ops
from laud_mm.latency.cuda_graphs import record_pass
from laud_mm.models.dynamic import force_rate, override_decisions

# Errors allowed, of the largest value that is expected.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
TILES = ((128, 256), (128, 128), (128, 64), (64, 64), (128, 32))
# Outputs of a stage's convolutions, and sides of its maps, of a ResNet at 224 x 224.
STAGES = ((64, 56), (128, 28), (256, 14), (512, 7), (256, 56), (512, 28), (1024, 14), (2048, 7),
          (32, 56))
LONG_MASK = 400_000  # positions of a stage's map at batch 128


@dataclass(frozen=True)
class OpCheck:
    """An operation on one input.

    Attributes:
        name (str): What it is.
        run (Callable): Returns pairs of what was computed and what should have been.
        dtype (torch.dtype): Of the maps.
    """
    name: str
    run: Callable[[], list]
    dtype: torch.dtype

    def error(self):
        """The largest error over what is allowed: at most 1 where the check holds."""
        worst = 0.0
        for actual, expected in self.run():
            if not expected.is_floating_point():
                worst = max(worst, 0.0 if torch.equal(actual, expected) else float('inf'))
            elif expected.numel():
                error = (actual.double() - expected.double()).abs().max().item()
                allowed = TOLERANCES[self.dtype] * max(1.0, expected.abs().max().item())
                worst = max(worst, error / allowed if error == error else float('inf'))
        return worst


def tiles_of(dtype):
    """The tiles of products in a type: rows and columns."""
    return TILES if dtype.itemsize == 2 else TILES[1:]


def stage_sized(tile, multiprocessors, dtype):
    """The smallest case of a network's sizes that has a tile: images, outputs and side."""
    cases = [(n, columns, side) for n in (1, 2, 4, 8, 16, 32, 64, 128) for columns, side in STAGES
             if torch.ops.laud_mm_build.tile(n * side**2, columns, 1, multiprocessors,
                                             dtype.itemsize == 2) == tile]
    return min(cases, key=lambda case: case[0] * case[2]**2 * case[1]**2)


def multiprocessors_of(device):
    """Of a GPU; elsewhere few, for small cases."""
    if torch.device(device).type != 'cuda':
        return 8
    return torch.cuda.get_device_properties(device).multi_processor_count


def op_checks(device, dtypes=tuple(TOLERANCES)) -> Iterator[OpCheck]:
    """Every kernel on every type: each tile of the convolutions, and what lists and decides."""
    for dtype in dtypes:
        for tile in tiles_of(dtype):
            size = stage_sized(tile, multiprocessors_of(device), dtype)
            name = f'{tile[0]} x {tile[1]} {str(dtype).removeprefix("torch.")}'
            for part, run in _convolutions(device, dtype, *size).items():
                yield OpCheck(f'{part} {name}', run, dtype)
        for part, run in _others(device, dtype).items():
            yield OpCheck(f'{part} {str(dtype).removeprefix("torch.")}', run, dtype)


def _both(operation, *args, **kwargs):
    """What an operation gives, and its reference in float64; both on the device."""
    def copy(value, wide):
        if not isinstance(value, torch.Tensor):
            return value
        return value.double() if wide and value.is_floating_point() else value.clone()
    narrow, wide = ([copy(a, w) for a in args] for w in (False, True))
    actual, expected = operation(*narrow, **kwargs), operation.reference(*wide, **kwargs)
    return actual, wide[0] if expected is None else expected


def _conv(outputs, inputs, kernel, device, dtype):
    weight = torch.randn(outputs, inputs, kernel, kernel, device=device) / (
        inputs * kernel**2)**0.5
    return weight.to(dtype), torch.randn(outputs, device=device).to(dtype)


def _map(n, channels, side, device, dtype):
    return torch.randn(n, channels, side, side, device=device).to(dtype).contiguous(
        memory_format=torch.channels_last)


def _rows(x):
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _convolutions(device, dtype, n, width, side):
    """The three convolutions of a block on patches of which half are on."""
    own, s = dict(device=device, dtype=dtype), 4 if side % 4 == 0 else 7
    index, count = ops.active_patches(torch.rand(n, side // s, side // s, device=device) < 0.5)

    def conv1():
        halo, found = ops.halo_positions(index, count, n, side, side, s)
        at = halo[:int(found)].long()
        pair = _both(ops.conv1x1_positions, _map(n, width, side, **own), halo, found,
                     *_conv(width, width, 1, **own))
        return [tuple(_rows(y)[at] for y in pair)]

    def conv2():
        pair = _both(ops.conv3x3_patches, _map(n, width, side, **own), index, count,
                     *_conv(width, width, 3, **own), s)
        return [tuple(rows[:int(count)] for rows in pair)]

    def conv3():
        identity = _map(n, width, side, **own)
        rows = torch.randn(len(index), s * s, width, device=device).to(dtype)
        return [_both(ops.conv1x1_add_patches_, identity, identity, rows, index, count,
                      *_conv(width, width, 1, **own), s)]

    def sums():
        return _sums(device, dtype, n, width, side)
    return dict(conv1x1_positions=conv1, conv3x3_patches=conv2, conv1x1_add_patches_=conv3,
                **({'sums of samples': sums} if torch.device(device).type == 'cuda' else {}))


def _sums(device, dtype, n, width, side):
    """A block's shortcut and conv3 on half of the samples, and the next masker, by sums alone."""
    own = dict(device=device, dtype=dtype)
    active = torch.rand(n, 1, 1, device=device) < 0.5
    index, count = ops.active_patches(active)
    x, shortcut = _map(n, width, side, **own), _conv(width, width, 1, **own)
    rows, conv3 = (torch.randn(n, side**2, width, device=device).to(dtype),
                   _conv(width, width, 1, **own))
    weight, bias = torch.randn(width, device=device), torch.zeros(1, device=device)
    found = []
    for wide in (False, True):
        def of(operation, *args, wide=wide, **kwargs):
            call = operation.reference if wide else operation
            return call(*(a.double() if wide and isinstance(a, torch.Tensor)
                          and a.is_floating_point() else a for a in args), **kwargs)
        listed = torch.zeros(n, ops.sum_pieces((side, side), side), width, device=device)
        y, whole = of(ops.conv1x1_shortcut, x, active, *shortcut, 1, side, True)
        of(ops.conv1x1_add_patches_, y, y, rows, index, count, *conv3, side, pieces=listed)
        mask, sums = of(ops.sums_mask, torch.zeros(n, width, device=device), whole, listed, index,
                        count, weight, bias, side**2)
        read = torch.einsum('nchw,c->n', y.double(), weight.double()) / side**2
        sure = read.abs() > 1e-2  # else rounding decides
        found.append((y, sums / side**2, mask.flatten()[sure], (read >= 0)[sure]))
    (y, sums, mask, decided), (wide, same, *_) = found
    return [(y, wide), (sums, same), (mask, decided)]


def _others(device, dtype, n=8, channels=256, side=14, s=2):
    """Kernels that have no tiles, and convolutions that pick channels."""
    own = dict(device=device, dtype=dtype)
    index, count = ops.active_patches(torch.rand(n, side // s, side // s, device=device) < 0.5)
    rows = torch.randn(len(index), s * s, channels, device=device).to(dtype)

    def lists():
        found = []
        for mask in (torch.rand(3, LONG_MASK, device=device) < 0.5,
                     torch.rand(n, 64, device=device) < 0.5):
            (listed, counts), (same, expected) = _both(ops.compact, mask)
            found += [(counts, expected), *((a[:k], b[:k]) for a, b, k in zip(
                listed, same, expected.tolist()))]
        (at, found_at), (same, expected) = _both(ops.halo_positions, index, count, n, side, side, s)
        k = int(expected)
        return [*found, (found_at, expected), (at[:k], same[:k])]

    def maskers():
        x, weight = _map(n, channels, side, **own), torch.randn(channels, device=device)
        means = torch.nn.functional.avg_pool2d(torch.einsum(
            'nchw,c->nhw', x.double(), weight.double())[:, None], s)[:, 0]
        sure = means.abs() > 1e-2  # else rounding decides
        bias = torch.zeros(1, device=device)
        mask, expected = _both(ops.patch_mask, x, weight, bias, s)
        (y, fused), (wide, _) = _both(ops.masker_conv1x1, x, *_conv(64, channels, 1, **own),
                                      weight, bias, s)
        return [(mask[sure], expected[sure]), (fused[sure], expected[sure]), (y, wide),
                _both(ops.position_means, x)]

    def stem():
        image = _map(n, 3, 30, **own)
        return [_both(ops.stem_conv, image, *_conv(64, 3, 7, **own), 2, pool)
                for pool in (True, False)]

    def excitation():
        weights = [(torch.randn(*shape, device=device) / 16).to(dtype) for shape in (
            (channels // 4, channels), (channels // 4,), (channels, channels // 4), (channels,))]
        pair = _both(ops.excite_patches_, rows, index, count, side, side, s, *weights)
        return [tuple(r[:int(count)] for r in pair)]

    def tokens():
        x = torch.randn(n, side**2, channels, device=device).to(dtype)
        at = torch.randperm(n * side**2, device=device)[:n * side**2 // 2]
        added = torch.randn(len(at), channels, device=device).to(dtype)
        return [_both(ops.gather_tokens, x, at), _both(ops.scatter_add_tokens_, x, at, added)]

    def picks(group):
        def run():
            chosen, counts = ops.compact(torch.rand(n, channels // group, device=device) < 0.5)
            pick = dict(channel_index=chosen, channel_count=counts, group_size=group)
            on = torch.arange(channels, device=device) < counts[:, None] * group
            whole = ops.active_patches(torch.ones(n, 1, 1, device=device))
            y, expected = _both(ops.conv1x1_positions, _map(n, 64, side, **own), None, None,
                                *_conv(channels, 64, 1, **own), **pick)
            off = ~on[:, :, None, None]
            first = y.masked_fill(off, 0), expected.masked_fill(off, 0)
            y = first[0].contiguous(memory_format=torch.channels_last)
            pair = _both(ops.conv3x3_patches, y, *whole, *_conv(channels, channels, 3, **own),
                         side, **pick)
            second = tuple(r.masked_fill(~on[:, None], 0) for r in pair)
            identity = _map(n, 64, side, **own)
            return [first, second, _both(ops.conv1x1_add_patches_, identity, identity, second[0],
                                         *whole, *_conv(64, channels, 1, **own), side, **pick)]
        return run
    return dict(lists=lists, maskers=maskers, stem=stem, excite_patches_=excitation, tokens=tokens,
                **{f'picks of {group}': picks(group) for group in (2, 8)})


def opposite_decisions(net, x):
    """Two sets of decisions: half of the units of every block, and the other half."""
    with force_rate(net, 0.5):
        net(x)
    first = net.record.decisions
    return first, {name: own.map(torch.logical_not) for name, own in first.items()}


def replays_differ(net, first, second):
    """Names of what a replayed pass of a net computes otherwise than the net itself; none: equal.

    One graph replays both images, each with decisions of its own, twice, the second image first.

    Args:
        net (LAUDBackbone): In evaluation.
        first (Tensor): (N, 3, H, W) images.
        second (Tensor): Others of that shape.
    """
    decisions = opposite_decisions(net, first)
    # What blocks decide is read from here.
    masks = {name: own.map(torch.clone) for name, own in decisions[0].items()}

    def decide(own):
        for name, decision in own.items():
            for kept, mask in zip(masks[name].masks().values(), decision.masks().values()):
                kept.copy_(mask)
    cases, wrong = list(zip(('first', 'second'), (first, second), decisions)), []
    with override_decisions(net, lambda name, _: masks[name]):
        expected = {}
        for name, image, own in cases:
            decide(own)
            expected[name] = [y.clone() for y in net(image)]
        graph = record_pass(net, first)
        for turn in range(2):
            for name, image, own in cases[::-1]:
                decide(own)
                graph.load(image)
                wrong += [f'{name} images, turn {turn + 1}, stage {stage + 1}'
                          for stage, (y, same) in enumerate(zip(graph.replay(), expected[name]))
                          if not torch.equal(y, same)]
    return wrong


def main(device='cuda'):
    """Run all checks of the operations; the exit status says whether they hold."""
    torch.manual_seed(0)
    wrong = 0
    with torch.no_grad():
        for check in op_checks(device):
            error = check.error()
            wrong += error > 1
            result = 'ok  ' if error <= 1 else 'FAIL'
            print(f'{result} {check.name}: {error:.3f} of what is allowed', flush=True)
    return int(wrong > 0)


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
