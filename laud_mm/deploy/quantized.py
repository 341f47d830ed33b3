"""The quantised form of a backbone: a deployed one whose blocks compute in 8-bit integers.

Blocks run the same steps; this is another table of what runs them. Maps are uint8, weights
int8 with a scale for each output. Maskers decide in float on exact means of the map, and
grouped convolutions, with the squeeze-and-excitation after them, stay in float.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import PerChannelMinMaxObserver

from laud_mm import ops
from laud_mm.models.dynamic import RUN_TABLE, BottleneckRun
from laud_mm.models.dynamic.precision import no_autocast
from laud_mm.specs import Step
from laud_mm.specs.bottleneck import MASKS
from laud_mm.specs.steps import register_kinds

from .modules import (
    DeployedBackbone,
    DeployedBlock,
    DeployedConv,
    DeployedMasker,
    DeployedStem,
)
from .scales import BlockScales, Scales

BELOW_ONE = 1 - 2.0**-24  # the largest multiplier
LARGEST_BIAS = 2**30
QUANTIZED_TABLE: dict[str, Any] = {kind: RUN_TABLE[kind] for kind in (
    'block', 'list_patches', 'halo_positions', 'copy_map')}


class QuantizedConv(nn.Module):
    """A convolution of 8-bit integers.

    Args:
        conv (DeployedConv): In float.
        scale_in (float): Of the map that it reads.
        scale_out (float): Of what it writes.
        zero (int): What stands for 0 in the map that it reads.
    """
    weight: Tensor
    bias: Tensor
    multiplier: Tensor
    packed: Tensor | None

    def __init__(self, conv: DeployedConv, scale_in: float, scale_out: float, zero: int = 0):
        super().__init__()
        weight, bias = conv.weight.float(), conv.bias.float()
        scales = weight_scales(weight)
        scales = torch.maximum(scales, bias.abs() / (scale_in * LARGEST_BIAS))
        self.register_buffer('weight', (weight / scales[:, None, None, None]).round()
                             .clamp(-127, 127).to(torch.int8))
        self.register_buffer('bias', (bias.double() / (scales.double() * scale_in)).round().int()
                             - zero * self.weight.sum((1, 2, 3), dtype=torch.int32))
        self.register_buffer('multiplier', (scales.double() * scale_in / scale_out)
                             .clamp(max=BELOW_ONE).float())
        self.register_buffer('packed', self.pack() if ops.has_kernel(weight.device) else None)

    def pack(self) -> Tensor:
        """Lay the weights out for kernels."""
        return ops.pack_int8(*self.values)

    @property
    def values(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weight, bias and multiplier, as operations take them."""
        return self.weight, self.bias, self.multiplier


def weight_scales(weight: Tensor) -> Tensor:
    """(out,) scales of symmetric 8-bit weights, by each output's largest."""
    observer = PerChannelMinMaxObserver(ch_axis=0, dtype=torch.qint8, quant_min=-127,
                                        quant_max=127, qscheme=torch.per_channel_symmetric)
    observer(weight)
    return observer.calculate_qparams()[0].float()


class QuantizedWeights(nn.Module):
    """What the steps of a quantised block read.

    Args:
        block (DeployedBlock): In float.
        scales (BlockScales): Of its maps.
    """

    def __init__(self, block: DeployedBlock, scales: BlockScales):
        super().__init__()
        self.scales, own = scales, block.weights
        sides = dict(conv1=(scales.input, scales.conv1), conv2=(scales.conv1, scales.conv2),
                     conv3=(scales.conv2, scales.output), shortcut=(scales.input, scales.output))
        for name, conv in own.named_children():
            if isinstance(conv, DeployedConv):
                self.add_module(name, QuantizedConv(conv, *sides[name]) if conv.groups == 1
                                else conv)
        self.excitation = own.excitation
        masks: Any = own.masker.items()
        # Their weights take what the map holds: multiples of its scale.
        self.masker = nn.ModuleDict({
            name: mask.with_difference(mask.weight.float() * scales.input, mask.bias.float())
            for name, mask in masks})


class QuantizedBlock(DeployedBlock):
    """A `DeployedBlock` of uint8 maps.

    Args:
        block (DeployedBlock): In float.
        scales (BlockScales): Of its maps.
    """

    def __init__(self, block: DeployedBlock, scales: BlockScales):
        weights: Any = QuantizedWeights(block, scales)
        super().__init__(block.shape, block.program, weights, block.se_pool, block.kept,
                         block.fixed)
        self.clock = _Steps


class _Steps:
    """Runs steps by the table of quantised ones."""

    @staticmethod
    def run(step: Step, run: BottleneckRun) -> None:
        QUANTIZED_TABLE[step.kind](run, step)


class QuantizedStem(QuantizedConv):
    """A stem of one convolution, and a max pool where one follows, in 8-bit integers.

    Args:
        stem (DeployedStem): In float.
        scales (Scales): Of the net's maps.
        scale_out (float): Of what it writes.
    """

    def __init__(self, stem: DeployedStem, scales: Scales, scale_out: float):
        convs: Any = stem.convs
        super().__init__(convs[0], scales.image, scale_out, scales.zero)
        self.zero, self.scale = scales.zero, scales.image
        self.stride, self.pool = stem.steps[0].op.stride, bool(pools_of(stem))

    def pack(self) -> Tensor:
        """See `QuantizedConv`."""
        return ops.pack_stem_int8(*self.values)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) images to the first block's input, uint8."""
        return ops.stem_int8(x, *self.values, self.scale, self.zero, self.stride, self.pool,
                             self.packed)


def pools_of(stem: DeployedStem) -> list:
    """The pools of a stem."""
    return [op for step in stem.steps for op in (step.op, *step.inner) if op.kind == 'pool']


def is_simple(stem: DeployedStem) -> bool:
    """Whether a stem is what `stem_int8` computes."""
    return len(stem.convs) == 1 and all(
        (op.kernel_size, op.stride) == (3, 2) for op in pools_of(stem))


class QuantizedBackbone(DeployedBackbone):
    """A deployed backbone whose blocks compute in 8-bit integers, and a simple stem too.

    Its outputs are in float.

    Args:
        deployed (DeployedBackbone): In float, with programs of `integer_form`.
        scales (Scales): Of its maps.

    Raises:
        ValueError: If the scales are of another net.
    """

    def __init__(self, deployed: DeployedBackbone, scales: Scales):
        stages: Any = deployed.stages
        blocks: Any = [[QuantizedBlock(block, scales.of(block.shape.name)) for block in stage]
                  for stage in stages]
        super().__init__(deployed.stem, blocks, deployed.out_indices, deployed.dtype,
                         deployed.with_decisions)
        self.scale_in = blocks[0][0].weights.scales.input
        self.quantized_stem = QuantizedStem(deployed.stem, scales, self.scale_in) \
            if is_simple(deployed.stem) else None
        self.scales_out = tuple(stage[-1].weights.scales.output for stage in blocks)

    @property
    def computes_in(self) -> str:
        """See `DeployedBackbone`."""
        return 'int8'

    def start(self, x: Tensor) -> Tensor:
        """Images to the first block's input, uint8."""
        if self.quantized_stem is not None:
            return self.quantized_stem(x)
        return ops.quantize(self.stem(x.to(self.dtype)), self.scale_in)

    def output(self, y: Tensor, stage: int) -> Tensor:
        """A stage's map in float."""
        return ops.dequantize(y, self.scales_out[stage])


def _runs(*kinds):
    return register_kinds(QUANTIZED_TABLE, kinds)


@_runs('layer_masker', 'spatial_masker')
def _decide(run, step):
    name = step.kind.removesuffix('_masker')
    masker: DeployedMasker = getattr(run.block.masker, name)
    with no_autocast(run.x.device):
        mask = ops.patch_mask_int8(run.x, masker.weight, masker.bias, masker.window or ops.WHOLE)
    run.masks[MASKS[name]] = mask.flatten(1) if name == 'layer' else mask


@_runs('rows1x1')
def _conv1x1(run, step):
    if step.part == 'downsample':
        conv = run.weights.shortcut
        # Where nothing is computed the output is the rectified shortcut.
        run.identity, run.out = ops.shortcut_int8(run.identity, *conv.values, step.op.stride,
                                                  conv.packed)
        return
    conv = run.weights.conv1
    run.y = ops.conv1x1_positions_int8(run.x, *run.positions, *conv.values, step.op.stride,
                                       conv.packed)


@_runs('rows3x3')
def _conv3x3(run, step):
    conv = run.weights.conv2
    run.rows = ops.conv3x3_patches_int8(run.y, run.index, run.count, *conv.values,
                                        run.patch_of(step), step.op.stride, step.op.dilation,
                                        conv.packed)


@_runs('rows3x3_grouped')
def _conv3x3_grouped(run, step):
    y = ops.dequantize(run.y, run.weights.scales.conv1)
    run.y = y.to(run.weights.conv2.weight.dtype)
    RUN_TABLE[step.kind](run, step)
    if not run.shape.se_channels:
        run.rows = ops.quantize(run.rows, run.weights.scales.conv2)


@_runs('excite_rows')
def _excite(run, step):
    if run.rows.dtype == torch.uint8:
        run.rows = ops.dequantize(run.rows, run.weights.scales.conv2)
    RUN_TABLE[step.kind](run, step)
    run.rows = ops.quantize(run.rows, run.weights.scales.conv2)


@_runs('rows1x1_add')
def _conv1x1_add(run, step):
    conv = run.weights.conv3
    run.out = ops.conv1x1_add_patches_int8_(run.out, run.identity, run.rows, run.index, run.count,
                                            *conv.values, run.patch_of(step), conv.packed)


@_runs('avgpool')
def _average(run, step):
    pooled = ops.average_pool(run.identity.float(), step.op.kernel_size)
    run.identity = ops.quantize(pooled, 1.0)


@_runs('relu')
def _rectify(run, step):
    """Nothing to do: uint8 is rectified."""
