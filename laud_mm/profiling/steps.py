"""Steps as programs: what to run to measure a `Step` on the machine at hand.

Inputs are written anew before every timed run, as the step before would have
done, and weights come round in turn, so that caches look as they do in a net.
"""
import itertools
import math

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from laud_mm import ops
from laud_mm.models.dynamic.decision import expand_patches, halo
from laud_mm.models.dynamic.excitation import Excitation
from laud_mm.models.dynamic.folding import FoldedBottleneck, FoldedConv
from laud_mm.models.dynamic.maskers import BlockMasker, global_mean
from laud_mm.models.dynamic.slicing import slice_channels
from laud_mm.specs import BottleneckShape

from . import patch_steps

COLD_BYTES, MAX_COPIES = 16 << 20, 32


class _CallCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


class StepProgram:
    """A step, ready to be timed.

    Args:
        step (Step): Its sizes are rounded to whole numbers.
        device (str | torch.device): Where it runs.
        dtype (torch.dtype): Type of maps and weights.

    Attributes:
        sizes (tuple[float, ...]): The sizes that it really has.
        without (Callable | None): What to subtract from the time of `run`.
    """

    def __init__(self, step, device, dtype=torch.float32):
        self.device, self.dtype = torch.device(device), dtype
        self._fresh, self.without = [], None
        integers = [max(round(size), 1) for size in step.sizes]
        self.sizes, self.run = getattr(self, f'_{step.kind}')(step, *integers)

    def prepare(self):
        """Write the inputs anew; not timed."""
        for target, source in self._fresh:
            target.copy_(source)

    def calls(self):
        """How many operators of torch one run calls, beyond those of `without`."""
        if self.without is not None:
            return 0  # what is measured is what lies between them
        counter = _CallCounter()
        self.prepare()
        with counter:
            self.run()
        return counter.calls

    def _tensor(self, *shape):
        # The values do not matter; random ones take longer to make than most steps to run.
        return torch.full(shape, 0.1, device=self.device, dtype=self.dtype)

    def _input(self, *shape):
        source = self._tensor(*shape)
        if len(shape) == 4:
            source = source.contiguous(memory_format=torch.channels_last)
        target = torch.empty_like(source)
        self._fresh.append((target, source))
        return target

    def _cold(self, make):
        """Endless copies of something, more of it than the caches hold."""
        first = make()
        tensors = first if isinstance(first, tuple) else (first,)
        size = sum(t.numel() * t.element_size() for t in tensors)
        count = min(max(COLD_BYTES // max(size, 1), 1), MAX_COPIES)
        return itertools.cycle([first, *(make() for _ in range(count))])

    def _weights(self, outputs, inputs, kernel):
        return self._cold(lambda: (
            self._tensor(outputs, inputs, kernel, kernel).contiguous(
                memory_format=torch.channels_last), self._tensor(outputs)))

    def _conv(self, step, inputs, outputs, kernel, groups=1):
        n, height, width, stride = (*step.args[:3], step.args[3])
        n = max(round(n), 1)
        x = self._input(n, inputs, height * stride, width * stride)
        weights = self._weights(outputs, inputs // groups, kernel)

        def run():
            weight, bias = next(weights)
            F.conv2d(x, weight, bias, stride, kernel // 2, 1, groups)
        rows = n * height * width
        return (rows, rows * stride**2), run

    def _conv7x7(self, step, rows, inputs, outputs):
        (rows, _), run = self._conv(step, inputs, outputs, 7)
        return (rows, inputs, outputs), run

    def _conv1x1(self, step, rows, inputs, outputs, reads):
        (rows, reads), run = self._conv(step, inputs, outputs, 1)
        return (rows, inputs, outputs, reads), run

    def _conv3x3(self, step, rows, inputs, outputs, reads):
        (rows, reads), run = self._conv(step, inputs, outputs, 3)
        return (rows, inputs, outputs, reads), run

    def _conv3x3_grouped(self, step, rows, width, group, reads):
        groups = max(round(width / group), 1)
        (rows, reads), run = self._conv(step, groups * group, groups * group, 3, groups)
        return (rows, groups * group, group, reads), run

    def _windows(self, step, inputs, outputs, groups=1):
        patches, window, side, stride, dilation = step.args
        patches = max(round(patches), 1)
        x = self._input(patches, inputs, window, window)
        weights = self._weights(outputs, inputs // groups, 3)

        def run():
            weight, bias = next(weights)
            F.conv2d(x, weight, bias, stride, 0, dilation, groups)
        return (patches * side**2, patches * window**2), run

    def _conv3x3_windows(self, step, rows, inputs, outputs, reads):
        (rows, reads), run = self._windows(step, inputs, outputs)
        return (rows, inputs, outputs, reads), run

    def _conv3x3_windows_grouped(self, step, rows, width, group, reads):
        groups = max(round(width / group), 1)
        (rows, reads), run = self._windows(step, groups * group, groups * group, groups)
        return (rows, groups * group, group, reads), run

    def _linear(self, step, rows, inputs, outputs):
        x = self._input(rows, inputs)
        weights = self._cold(lambda: (self._tensor(outputs, inputs), self._tensor(outputs)))
        return (rows, inputs, outputs), lambda: F.linear(x, *next(weights))

    def _maxpool(self, step, rows, channels):
        side = max(round(math.sqrt(rows)), 1)
        x = self._input(1, channels, side * 2, side * 2)
        return (side * side, channels), lambda: F.max_pool2d(x, 3, 2, 1)

    def _relu(self, step, rows, channels):
        x = self._input(rows, channels)
        return (rows, channels), lambda: F.relu_(x)

    def _add_relu(self, step, rows, channels):
        x, y = self._input(rows, channels), self._input(rows, channels)
        return (rows, channels), lambda: F.relu_(x.add_(y))

    def _excitation(self, channels, hidden):
        return Excitation(self._tensor(hidden, channels), self._tensor(hidden),
                          self._tensor(channels, hidden), self._tensor(channels))

    def _excite(self, step, n, positions, channels, hidden):
        x, se = self._input(n, channels, *step.args), self._excitation(channels, hidden)
        return ((n, positions, channels, hidden),
                lambda: x.mul_(se.scales(global_mean(x))[:, :, None, None]))

    def _masker(self, shape, n, size):
        masker = BlockMasker(shape).to(self.device, self.dtype).eval()
        x = self._input(n, shape.in_channels, *size)
        return lambda: masker(x)

    def _layer_masker(self, step, n, positions, channels):
        shape = BottleneckShape('b', 0, channels, channels, channels, paradigm='layer')
        return (n, positions, channels), self._masker(shape, n, step.args)

    def _channel_masker(self, step, n, positions, channels, groups):
        height, width, kind, _ = step.args
        shape = BottleneckShape('b', 0, channels, groups, channels, paradigm='channel',
                                channel_masker=kind)
        return (n, positions, channels, groups), self._masker(shape, n, (height, width))

    def _spatial_masker(self, step, n, positions, channels, units):
        height, width, window = step.args
        shape = BottleneckShape('b', 0, channels, channels, channels, paradigm='spatial',
                                spatial_granularity=window)
        return (n, positions, channels, units), self._masker(shape, n, (height, width))

    def _gates(self, batch, on):
        gates = torch.zeros(batch, 1, dtype=torch.bool, device=self.device)
        gates[torch.randperm(batch)[:on]] = True
        return gates

    def _gather_samples(self, step, n, rows, channels, batch):
        x, gates = self._input(batch, channels, *step.args), self._gates(batch, n)
        return ((n, rows, channels, batch),
                lambda: ops.gather_samples(x, gates[:, 0].nonzero()[:, 0]))

    def _add_samples(self, step, n, rows, channels, batch):
        out = self._input(batch, channels, *step.args)
        residual = self._input(n, channels, *step.args)
        samples = self._gates(batch, n)[:, 0].nonzero()[:, 0]
        return ((n, rows, channels, batch),
                lambda: ops.add_relu_samples_(out, out, samples, residual))

    def _split_masks(self, step, n, groups):
        masks = torch.rand(n, groups, device=self.device) < 0.5
        return (n, groups), lambda: masks.bool().unique(dim=0, return_inverse=True)

    def _folded(self, width, cin, cout, groups):
        def conv(outputs, inputs, kernel=1, groups=1):
            weight = self._tensor(outputs, inputs // groups, kernel, kernel)
            return FoldedConv(weight.contiguous(memory_format=torch.channels_last),
                              self._tensor(outputs), groups)
        return FoldedBottleneck(conv(width, cin), conv(width, width, 3, groups),
                                conv(cout, width))

    def _slice_channels(self, step, width, active, outer):
        cin, cout, groups, size = step.args
        count = 1 + min(COLD_BYTES // (4 * width * (outer + 9 * width // groups)), 8)
        folded = itertools.cycle([self._folded(width, cin, cout, groups) for _ in range(count)])
        units = max(width // size, 1)
        on = max(round(active / size), 1)
        mask = torch.zeros(units, dtype=torch.bool, device=self.device)
        mask[torch.randperm(units)[:on]] = True
        which = torch.arange(8, device=self.device)

        def run():
            (which == 3).nonzero()  # which samples have this mask
            bool(mask.all())
            slice_channels(next(folded), mask.repeat_interleave(width // units))
        return (width, on * (width // units), outer), run

    _slice_grouped = _slice_channels

    def _pick_channels(self, step, rows, channels):
        x = self._input(1, channels, 1, rows)
        index = torch.arange(channels, device=self.device)
        return ((rows, channels),
                lambda: x.movedim(1, -1).index_select(-1, index).movedim(-1, 1))

    def _patches(self, n, height, width, side, share):
        grid = -(-height // side), -(-width // side)
        units = n * grid[0] * grid[1]
        mask = torch.zeros(units, dtype=torch.bool, device=self.device)
        mask[torch.randperm(units)[:max(round(share * units), 1)]] = True
        return mask.view(n, *grid)

    def _plan_patches(self, step, map_rows, patch_rows, units, n):
        (height, width, side, share), stride = step.args, step.variant[0]
        patches = self._patches(n, height, width, side, share)
        mid = height * stride, width * stride

        def run():
            active = patch_steps.active_patches(patches)
            patch_steps.patch_positions(active, (height, width), side)
            computed = expand_patches(patches.float(), (height, width), side)
            halo(computed, mid, stride, 1).flatten().nonzero()
        return (n * math.prod(mid), int(patches.sum()) * side**2, patches.numel(), n), run

    def _some_rows(self, total, rows):
        total = max(total, rows)
        return total, torch.randperm(total, device=self.device)[:rows].sort()[0]

    def _gather_rows(self, step, rows, channels, map_rows):
        total, positions = self._some_rows(map_rows, rows)
        x = self._input(1, channels, 1, total)
        return (rows, channels, total), lambda: patch_steps.gather_positions(x, positions)

    def _gather_windows(self, step, rows, window_rows, map_rows, channels):
        n, height, width, side, share, stride, dilation = step.args
        patches = self._patches(n, height, width, side, share)
        size = n, height * stride, width * stride
        _, positions = self._some_rows(math.prod(size), min(rows, math.prod(size)))
        active = patch_steps.active_patches(patches)
        x = self._input(len(positions), channels)
        window = (side - 1) * stride + 2 * dilation + 1

        def run():
            patch_steps.gather_windows(x, positions, active, size, side, patches.shape[1:], stride,
                               dilation)
        return (len(positions), len(active) * window**2, math.prod(size), channels), run

    def _scatter_add_rows(self, step, rows, channels, map_rows):
        total, positions = self._some_rows(map_rows, rows)
        out, values = self._input(1, channels, 1, total), self._input(rows, channels)
        return ((rows, channels, total),
                lambda: patch_steps.scatter_add_relu(out, out, positions, values))

    def _excite_rows(self, step, rows, channels, hidden):
        x, se = self._input(rows, channels), self._excitation(channels, hidden)
        samples = torch.randint(step.args[0], (rows,), device=self.device).sort()[0]
        return (rows, channels, hidden), lambda: patch_steps.excite_rows(x, se, samples)

    def _block(self, step):
        """What a block does around its convolutions: look at the fold, choose a path."""
        from laud_mm.models.backbones.laud_resnet import LAUDBottleneck
        shape = BottleneckShape('b', 0, 16, 16, 16)
        block = LAUDBottleneck(shape, norm_cfg=dict(type='BN')).to(self.device, self.dtype).eval()
        x = self._input(1, 16, 1, 1)
        block(x, masked=False)
        folded = block.folded()

        def run():
            block(x, masked=False)

        def convolutions():
            y = F.relu_(F.conv2d(x, folded.conv1.weight, folded.conv1.bias))
            y = F.relu_(F.conv2d(y, folded.conv2.weight, folded.conv2.bias, padding=1))
            y = F.conv2d(y, folded.conv3.weight, folded.conv3.bias)
            return F.relu_(y.add_(x))
        self.without = convolutions
        return (), run
