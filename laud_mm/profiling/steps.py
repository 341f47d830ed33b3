"""Steps as programs: what to run to measure a `Step` on the machine at hand.

Before every timed run the near caches are swept and inputs are written anew, as
the step before would have done: so caches look as they do in a net.
"""
import math

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from laud_mm import ops
from laud_mm.models.dynamic.excitation import Excitation
from laud_mm.models.dynamic.folding import FoldedBottleneck, FoldedConv
from laud_mm.models.dynamic.maskers import BlockMasker
from laud_mm.models.dynamic.slicing import slice_channels
from laud_mm.specs import BottleneckShape

SWEEP_BYTES = 8 << 20  # more than the near caches of two CPU cores hold


class _CallCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += 1
        return func(*args, **(kwargs or {}))


def sweep_bytes(device):
    """What to write so that nothing stays in the near caches of a device."""
    if device.type == 'cuda':
        return 2 * torch.cuda.get_device_properties(device).L2_cache_size
    return SWEEP_BYTES


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
        self._sweep = torch.zeros(sweep_bytes(self.device) // 4, device=self.device)
        integers = [max(round(size), 1) for size in step.sizes]
        self.sizes, self.run = getattr(self, f'_{step.kind}')(step, *integers)

    def prepare(self):
        """Put weights out of the near caches and write the inputs anew; not timed."""
        self._sweep.add_(1)
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

    def _weight(self, outputs, inputs, kernel):
        weight = self._tensor(outputs, inputs, kernel, kernel)
        return (weight.contiguous(memory_format=torch.channels_last), self._tensor(outputs))

    def _conv(self, step, inputs, outputs, kernel, groups=1):
        n, height, width, stride = (*step.args[:3], step.args[3])
        n = max(round(n), 1)
        x = self._input(n, inputs, height * stride, width * stride)
        weight, bias = self._weight(outputs, inputs // groups, kernel)

        def run():
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
                lambda: x * se.scales(ops.position_means(x))[:, :, None, None])

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

    def _split_masks(self, step, n, groups):
        masks = torch.rand(n, groups, device=self.device) < 0.5
        return (n, groups), lambda: masks.bool().unique(dim=0, return_inverse=True)

    def _folded(self, width, cin, cout, groups):
        def conv(outputs, inputs, kernel=1, groups=1):
            return FoldedConv(*self._weight(outputs, inputs // groups, kernel), groups)
        return FoldedBottleneck(conv(width, cin), conv(width, width, 3, groups),
                                conv(cout, width))

    def _slice_grouped(self, step, width, active, outer):
        cin, cout, groups, size = step.args
        folded = self._folded(width, cin, cout, groups)
        units = max(width // size, 1)
        on = max(round(active / size), 1)
        mask = torch.zeros(units, dtype=torch.bool, device=self.device)
        mask[torch.randperm(units)[:on]] = True
        which = torch.arange(8, device=self.device)

        def run():
            members = (which == 3)[:, None, None]
            bool(mask.all())
            sliced = slice_channels(folded, mask.repeat_interleave(width // units))
            # The executor's kernels ask for packed weights.
            packed = [conv.packed for conv in (sliced.conv1, sliced.conv2, sliced.conv3)]
            return members, packed
        return (width, on * (width // units), outer), run

    def _pick_channels(self, step, rows, channels):
        x = self._input(1, channels, 1, rows)
        index = torch.arange(channels, device=self.device)
        return ((rows, channels),
                lambda: x.movedim(1, -1).index_select(-1, index).movedim(-1, 1))

    def _list_patches(self, step, units):
        patches = torch.rand(step.args, device=self.device) < 0.5
        whole = torch.ones_like(patches)
        return (patches.numel(),), lambda: ops.active_patches(whole & patches)

    def _list_channels(self, step, n, groups):
        masks = torch.rand(n, groups, device=self.device) < 0.5
        return (n, groups), lambda: ops.compact(masks.bool())

    def _listed(self, n, height, width, side, share):
        """A list of patches: index and count as the operations take them, how many, their area."""
        grid = -(-height // side), -(-width // side)
        units = n * math.prod(grid)
        mask = torch.zeros(units, dtype=torch.bool, device=self.device)
        count = min(max(round(share * units), 1), units)
        mask[torch.randperm(units)[:count]] = True
        return (*ops.active_patches(mask.view(n, *grid)), count,
                min(side, height) * min(side, width))

    def _halo_positions(self, step, rows, map_rows, lines):
        n, height, width, side, share, stride, dilation = step.args
        index, count, patches, _ = self._listed(n, height, width, side, share)
        mid = height * stride, width * stride
        window = min((min(side, height) - 1) * stride + 1 + 2 * dilation, mid[0])

        def run():
            return ops.halo_positions(index, count, n, *mid, side, stride, dilation)
        return (int(run()[1]), n * math.prod(mid), patches * window), run

    def _fold(self, form, outputs, inputs, kernel=1, groups=1):
        """Folded weights, bias, and weights in a form for kernels."""
        conv = FoldedConv(*self._weight(outputs, inputs // groups, kernel), groups)
        # Laid out now: nets do so once, not in every run.
        return conv.weight, conv.bias, getattr(conv, form)

    def _channels(self, n, total, active, size):
        """Arguments that pick so many channels of each sample."""
        groups = max(total // size, 1)
        on = min(max(round(active / size), 1), groups)
        masks = torch.zeros(n, groups, dtype=torch.bool, device=self.device)
        for mask in masks:
            mask[torch.randperm(groups)[:on]] = True
        index, count = ops.compact(masks)
        return on * size, dict(channel_index=index, channel_count=count, group_size=size)

    def _some_positions(self, total, rows, run):
        """Ascending positions in runs, as patches have them; without runs None, all of them."""
        if run == 0:
            return None, None
        rows = min(rows, total)
        run = max(min(run, rows), 1)
        starts = torch.randperm(-(-total // run))[:-(-rows // run)].sort()[0] * run
        index = (starts[:, None] + torch.arange(run)).flatten()
        index = index[index < total][:rows].to(self.device, torch.int32)
        return index, torch.tensor([len(index)], dtype=torch.int32, device=self.device)

    def _rows1x1(self, step, rows, inputs, outputs):
        total, stride, run = step.args
        total = max(round(total), rows)
        index, count = self._some_positions(total, rows, run)
        x = self._input(1, inputs, 1, (total - 1) * stride + 1)
        weight, bias, packed = self._fold('packed', outputs, inputs)

        def convolve():
            ops.conv1x1_positions(x, index, count, weight, bias, stride, True, packed=packed)
        return (total if index is None else len(index), inputs, outputs), convolve

    def _patch_conv(self, step, outputs, inputs, groups=1, winograd=False):
        n, height, width, side, share, stride, dilation = step.args
        index, count, patches, area = self._listed(n, height, width, side, share)
        y = self._input(n, inputs, height * stride, width * stride)
        form = 'packed_winograd' if winograd else 'packed'
        weight, bias, packed = self._fold(form, outputs, inputs, 3, groups)

        def run():
            ops.conv3x3_patches(y, index, count, weight, bias, side, stride, dilation, groups,
                                packed=packed, winograd=winograd and packed is not None)
        return patches, patches * area, run

    def _rows3x3(self, step, rows, inputs, outputs):
        _, rows, run = self._patch_conv(step, outputs, inputs)
        return (rows, inputs, outputs), run

    def _rows3x3_winograd(self, step, rows, inputs, outputs):
        patches, _, run = self._patch_conv(step, outputs, inputs, winograd=True)
        sides = [min(step.args[3], size) for size in step.args[1:3]]
        return (4 * patches * math.prod(-(-side // 2) for side in sides), inputs, outputs), run

    def _rows3x3_grouped(self, step, rows, width, group):
        groups = max(round(width / group), 1)
        _, rows, run = self._patch_conv(step, groups * group, groups * group, groups)
        return (rows, groups * group, group), run

    def _rows1x1_add(self, step, rows, inputs, outputs):
        index, count, patches, area = self._listed(*step.args)
        n, height, width, side, _ = step.args
        out = self._input(n, outputs, height, width)
        values = self._input(len(index), area, inputs)
        weight, bias, packed = self._fold('packed', outputs, inputs)

        def run():
            ops.conv1x1_add_patches_(out, out, values, index, count, weight, bias, side,
                                     packed=packed)
        return (patches * area, inputs, outputs), run

    def _picked1x1(self, step, rows, inputs, outputs, samples):
        total, stride, run, size = step.args
        n, total = samples, max(round(total), rows)
        index, count = self._some_positions(total // n * n, rows, run)
        x = self._input(n, inputs, 1, (total // n - 1) * stride + 1)
        width = size * max(round(2 * outputs / size), 1)
        active, picks = self._channels(n, width, outputs, size)
        weight, bias, packed = self._fold('sliceable', width, inputs)

        def convolve():
            ops.conv1x1_positions(x, index, count, weight, bias, stride, True, packed=packed,
                                  **picks)
        return (total // n * n if index is None else len(index), inputs, active, n), convolve

    def _picked3x3(self, step, rows, inputs, outputs, samples):
        n, height, width, side, share, stride, dilation, size = step.args
        index, count, patches, area = self._listed(n, height, width, side, share)
        total = size * max(round(2 * outputs / size), 1)
        active, picks = self._channels(n, total, outputs, size)
        y = self._input(n, total, height * stride, width * stride)
        weight, bias, packed = self._fold('sliceable', total, total, 3)

        def run():
            ops.conv3x3_patches(y, index, count, weight, bias, side, stride, dilation,
                                packed=packed, **picks)
        return (patches * area, active, active, samples), run

    def _picked1x1_add(self, step, rows, inputs, outputs, samples):
        n, height, width, side, share, size = step.args
        index, count, patches, area = self._listed(n, height, width, side, share)
        total = size * max(round(2 * inputs / size), 1)
        active, picks = self._channels(n, total, inputs, size)
        out = self._input(n, outputs, height, width)
        values = self._input(len(index), area, total)
        weight, bias, packed = self._fold('packed', outputs, total)

        def run():
            ops.conv1x1_add_patches_(out, out, values, index, count, weight, bias, side,
                                     packed=packed, **picks)
        return (patches * area, active, outputs, samples), run

    def _excite_rows(self, step, positions, channels, hidden, n):
        samples, height, width, side, share = step.args
        index, count, patches, area = self._listed(samples, height, width, side, share)
        values = self._input(len(index), area, channels)
        weights = self._excitation(channels, hidden).weights
        grid = math.ceil(height / side) * math.ceil(width / side)
        computing = min(patches, samples)
        return ((patches / (computing * grid) * height * width, channels, hidden, computing),
                lambda: ops.excite_patches_(values, index, count, height, width, side, *weights))

    def _block(self, step):
        """What a block does around its operations: look at the fold, list, choose."""
        from laud_mm.models.backbones.laud_resnet import LAUDBottleneck
        from laud_mm.models.dynamic.decision import Decision
        shape = BottleneckShape('b', 0, 16, 16, 16, paradigm='layer')
        block = LAUDBottleneck(shape, norm_cfg=dict(type='BN')).to(self.device, self.dtype).eval()
        x = self._input(1, 16, 1, 1)
        on = Decision(layer=torch.ones(1, 1, dtype=torch.bool, device=self.device))
        index, count = ops.active_patches(on.layer[:, :, None])
        block(x, masked=False, override=lambda name, decision: on)
        conv1, conv2, conv3 = (getattr(block.folded(), f'conv{i}') for i in (1, 2, 3))

        def run():
            block(x, masked=False, override=lambda name, decision: on)

        def operations():
            block.masker(x)
            ops.active_patches(on.layer[:, :, None])
            positions = ops.halo_positions(index, count, 1, 1, 1, 1, 1, 1)
            y = ops.conv1x1_positions(x, *positions, conv1.weight, conv1.bias,
                                      packed=conv1.packed)
            rows = ops.conv3x3_patches(y, index, count, conv2.weight, conv2.bias, 1,
                                       packed=conv2.packed)
            ops.conv1x1_add_patches_(x, x, rows, index, count, conv3.weight, conv3.bias, 1,
                                     packed=conv3.packed)
        self.without = operations
        return (), run
