"""The kernel table: for every kind of step, the GPU kernels that it launches.

A function takes a step, its work and the batch, and returns `Launch`es; sizes of kernels are
per image. Families add their own kinds to the table.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from laud_mm.specs import BlockSpec, Case, Rates, Step, Work
from laud_mm.specs.steps import register_kinds

from .kernels import Add, Conv, Launch, PatchConv, ScatterAdd, Stream, dense_kernel

KERNEL_TABLE: dict[str, Callable[[Step, Work, int], list[Launch]]] = {}


def launches(*kinds: str) -> Callable:
    """Register what some kinds of step launch, see `register_kinds`."""
    return register_kinds(KERNEL_TABLE, kinds)


class ProgramSchedule:
    """What the programs of this project launch on a device.

    Args:
        device (str): 'cpu' or 'cuda', as of `Case`.
    """

    def __init__(self, device: str = 'cuda'):
        self.device = device

    def outside(self, ops) -> list[Launch]:
        """Launches of the stem or the tail."""
        return [Launch(op.name, dense_kernel(op)) for op in ops]

    def static(self, block: BlockSpec, batch: int) -> list[Launch]:
        """Launches of the static block."""
        return self._launch(block, block.shape.static_route, None, batch)

    def dynamic(self, block: BlockSpec, rates: Rates | None, batch: int) -> list[Launch]:
        """Launches of the program that runs at `Rates`; None: always on."""
        return self._launch(block, None, rates, batch)

    def _launch(self, block, route, rates, batch):
        case = Case(block.shape, block.in_size, batch, self.device)
        program = block.program(case, route, rates)
        work = block.shape.expected_work(case, program.route, rates)
        return [replace(launch, name=f'{block.name}.{step.part or step.kind}',
                        probability=times * launch.probability)
                for step, one, times in program.at(work)
                for launch in KERNEL_TABLE[step.kind](step, one, batch)]


def _stream(per_image, samples=1.0, **kwargs):
    return [Launch('', Stream(per_image, **kwargs), samples)]


def _on(kernel, samples, batch, launches=1):
    """A kernel on some samples; on none it is launched all the same."""
    if samples <= 0:
        return [Launch('', Stream(0.0), launches=launches)]
    return [Launch('', kernel, samples / batch, launches=launches)]


def _whole(channels, share):
    """How many channels a share is: at least one."""
    return max(math.ceil(channels * share - 1e-9), 1)


def _conv(step, work, batch, side, patches, samples, gathered=False):
    """A convolution on patches of a side, or on whole samples, with some channels."""
    op = step.op
    kernel = Conv(op.in_channels, op.out_channels, op.out_size, op.kernel_size, op.stride,
                  op.groups)
    share = {name: side(work) / total if total else 1.0 for name, side, total in (
        ('in_rate', step.inputs, op.in_channels), ('out_rate', step.outputs, op.out_channels))}
    if side >= max(op.out_size):
        granularity = step.group_size if share['out_rate'] < 1 else 0
        return _on(replace(kernel, **share, granularity=granularity or None), samples, batch)
    cin, cout = op.in_channels, op.out_channels
    if op.groups == 1:  # compact channels do not lie evenly in convolution groups
        cin, cout = _whole(cin, share['in_rate']), _whole(cout, share['out_rate'])
    per_image = math.ceil(patches / max(samples, 1) - 1e-9)
    return _on(PatchConv(cin, cout, op.out_size, side, per_image, gathered, op.kernel_size,
                         op.stride, op.groups), samples, batch)


@launches('block')
def _nothing(step, work, batch):
    return []


@launches('layer_masker', 'spatial_masker')
def _masker(step, work, batch):
    read = step.in_rows * step.op.in_channels
    return _stream(read + max(step.units, 1), work.samples / batch, macs=read)


@launches('channel_masker', 'class_masker')
def _masker_layers(step, work, batch):
    return [Launch('', dense_kernel(op)) for op in step.inner or (step.op,)]


@launches('masker_conv1x1')
def _masker_conv(step, work, batch):
    op = step.op
    return [Launch('', Conv(op.in_channels, op.out_channels + 1, op.out_size))]


@launches('list_patches', 'list_channels', 'split_masks', 'list_tokens')
def _list(step, work, batch):
    return _stream(2 * step.units, work.samples / batch)


@launches('halo_positions')
def _list_positions(step, work, batch):
    return _stream(2 * step.in_rows, work.samples / batch)


@launches('copy_map', 'take_samples', 'put_samples', 'mask_channels', 'norm_map',
          'channel_norm')
def _copy_map(step, work, batch):
    return _stream(2 * step.out_rows * step.op.out_channels, work.samples / batch)


@launches('rows1x1', 'picked1x1')
def _positions(step, work, batch):
    side = max(step.op.out_size)
    if not step.listed or step.patch >= side:
        samples = work.computing if step.listed else work.samples
        return _conv(step, work, batch, side, 0, samples)
    side = min(step.patch, side)
    return _conv(step, work, batch, side, work.positions / side**2, work.computing)


@launches('shortcut1x1')
def _shortcut(step, work, batch):
    return _conv(step, work, batch, max(step.op.out_size), 0, work.samples)


@launches('rows3x3', 'rows3x3_winograd', 'rows3x3_grouped', 'picked3x3', 'picked3x3_grouped')
def _patches(step, work, batch):
    return _conv(step, work, batch, min(step.patch, max(step.op.out_size)), work.patches,
                 work.computing)


@launches('rows1x1_add', 'picked1x1_add')
def _patches_add(step, work, batch):
    op = step.op
    side = min(step.patch, max(op.out_size))
    conv = _conv(step, work, batch, side, work.patches, work.computing, gathered=True)
    if side >= max(op.out_size):
        add = Add(op.out_channels, op.out_size)
    else:
        per_image = math.ceil(work.patches / max(work.computing, 1) - 1e-9)
        add = ScatterAdd(op.out_channels, op.out_size, side, per_image)
    return [*conv, *_on(add, work.computing, batch, launches=0)]


@launches('depthwise_norm_rows')
def _depthwise_patches(step, work, batch):
    rows = _patches(step, work, batch)
    norm = Stream(2 * work.patches * step.patch_rows / batch * step.op.out_channels)
    return [*rows, Launch('', norm)]


@launches('mlp_rows_add')
def _mlp_patches(step, work, batch):
    op = step.op
    back = replace(step, op=replace(op, in_channels=op.out_channels,
                                    out_channels=op.in_channels))
    side = min(step.patch, max(op.out_size))
    between = Stream(2 * work.patches * step.patch_rows / batch * op.out_channels)
    return [*_conv(step, work, batch, side, work.patches, work.computing, gathered=True),
            Launch('', between), *_patches_add(back, work, batch)]


@launches('excite', 'excite_masked', 'excite_rows', 'picked_excite')
def _excite(step, work, batch):
    op = step.op
    listed = step.kind in ('excite_rows', 'picked_excite')
    samples = work.computing if listed else work.samples
    channels = work.channels if listed else op.in_channels
    rows = step.out_rows
    if listed and samples:
        rows = work.patches * step.patch_rows / samples
    values, weights = rows * channels, channels * op.out_channels
    kernels = (Stream(values + channels, cached=values),
               Stream(channels + op.out_channels, shared=weights, macs=weights),
               Stream(channels + op.out_channels, shared=weights, macs=weights),
               Stream(2 * values, cached=3 * values))
    return [launch for kernel in kernels for launch in _on(kernel, samples, batch)]


@launches('shift_channels')
def _shifts(step, work, batch):
    width = step.op.in_channels
    return [Launch('', Stream(0.0, shared=width * (9 * width + step.units)), launches=2)]


@launches('slice_weights')
def _slice(step, work, batch):
    conv2 = 9 * work.channels * step.op.in_channels // step.op.groups
    return [Launch('', Stream(0.0, shared=2 * (work.channels * step.units + conv2)))] * 3


@launches('spread_channels')
def _spread(step, work, batch):
    return _stream(2 * step.in_rows * work.read_channels, work.samples / batch)


@launches('keep_channels')
def _keep(step, work, batch):
    return _stream(2 * step.patch_rows * work.patches / batch * work.channels)


@launches('stem_conv')
def _stem(step, work, batch):
    return [Launch('', dense_kernel(op), work.samples / batch) for op in (step.op, *step.inner)]


@launches('conv7x7', 'conv1x1', 'conv3x3', 'conv3x3_grouped', 'maxpool', 'avgpool', 'patchify',
          'depthwise_conv', 'pointwise', 'tokens_to_token')
def _dense(step, work, batch):
    return [Launch('', dense_kernel(step.op), work.samples / batch)]


@launches('relu')
def _relu(step, work, batch):
    if step.part != 'relu':
        return []  # a compiled static net fuses it into the convolution
    return _copy_map(step, work, batch)


@launches('add_relu', 'add_masked_relu', 'add_map', 'add_masked_map')
def _add(step, work, batch):
    return [Launch('', Add(step.op.out_channels, step.op.out_size), work.samples / batch)]


# Tokens of a transformer: kernels run on the samples of a pass.

def _per_sample(work):
    return max(math.ceil(work.rows / max(work.samples, 1) - 1e-9), 1)


@launches('token_masker')
def _decide_tokens(step, work, batch):
    values = step.in_rows * step.op.in_channels
    return _stream(values + step.in_rows, macs=values)


@launches('norm_rows', 'gelu', 'gather_tokens', 'mask_heads', 'mask_tokens')
def _token_stream(step, work, batch):
    return _stream(2 * _per_sample(work) * step.op.out_channels, work.samples / batch)


@launches('pick_heads')
def _pick_heads(step, work, batch):
    return _stream(2 * _per_sample(work) * work.heads * step.group_size, work.samples / batch)


@launches('add_tokens', 'scatter_tokens')
def _add_tokens(step, work, batch):
    return [Launch('', Add(step.op.out_channels, (_per_sample(work), 1)), work.samples / batch)]


@launches('linear')
def _linear(step, work, batch):
    op, dims = step.op, work.heads * step.group_size
    kernel = Conv(op.in_channels, op.out_channels, (_per_sample(work), 1))
    if step.narrow == 'out':
        heads = op.out_channels // 3
        kernel = replace(kernel, out_rate=min(dims / heads, 1.0))
    elif step.narrow == 'in':
        kernel = replace(kernel, in_rate=min(dims / op.in_channels, 1.0))
    return [Launch('', kernel, work.samples / batch)]


@launches('attention')
def _attention(step, work, batch):
    tokens, heads = math.ceil(work.longest - 1e-9), max(work.heads, 1)
    scores = Conv(step.group_size, tokens, (tokens, 1), matrices=heads)
    mix = Conv(tokens, step.group_size, (tokens, 1), matrices=heads)
    kernels = scores, Stream(2 * heads * tokens**2), mix
    return [Launch('', kernel, work.samples / batch) for kernel in kernels]
