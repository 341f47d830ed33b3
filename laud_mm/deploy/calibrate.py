"""Measure the scales of a quantised network on images, with torch's own observers."""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import HistogramObserver

from laud_mm import ops
from laud_mm.models.dynamic import RUN_TABLE
from laud_mm.models.find import find_backbone

from .scales import BlockScales, Scales


def measure_scales(model: nn.Module, batches: Iterable[Tensor]) -> Scales:
    """Run images through a backbone and choose scales that make the squared error small.

    Only what is computed is looked at, so the images decide as they do in use.

    Args:
        model (nn.Module): A LAUD backbone in evaluation, or a model with one.
        batches (Iterable[Tensor]): Images (N, C, H, W) as the backbone takes them.

    Returns:
        Scales: For `deploy(..., quantized=scales)`.

    Raises:
        ValueError: If there is no image, or the backbone cannot be quantised.
    """
    from .build import integer_form
    deployed: Any = integer_form(find_backbone(model, 'measure_scales'))
    watch = _Watch(deployed.blocks())
    for block in deployed.blocks():
        block.clock = watch
    images, pixels = 0, _observer()
    with torch.no_grad():
        for x in batches:
            images += len(x)
            pixels(x)
            deployed(x)
    if not images:
        raise ValueError('scales need at least one image, got none')
    image, zero = pixels.calculate_qparams()
    return Scales(images, {block.shape.name: watch.scales(block.shape.name)
                           for block in deployed.blocks()}, float(image), int(zero))


class _Watch:
    """Runs steps as in evaluation and shows the observers what they computed."""

    def __init__(self, blocks):
        self.observers: dict[str, dict[str, HistogramObserver]] = {}
        stream = _observer()
        for block in blocks:
            # What passes a block by keeps its scale.
            output = _observer() if block.shape.downsample else stream
            self.observers[block.shape.name] = dict(input=stream, conv1=_observer(),
                                                    conv2=_observer(), output=output)
            stream = output
        self.first = blocks[0].shape.name

    def run(self, step, run):
        RUN_TABLE[step.kind](run, step)
        own = self.observers[run.shape.name]
        if step.kind == 'block' and run.shape.name == self.first:
            own['input'](run.x)
        elif step.part == 'conv1':
            own['conv1'](_at(run.y, run.positions))
        elif step.part == ('se' if run.shape.se_channels else 'conv2'):
            own['conv2'](_listed(run, step))
        elif step.part == ('relu' if run.shape.downsample else 'conv3'):
            own['output'](run.out)

    def scales(self, block):
        found = {name: _scale_of(observer) for name, observer in self.observers[block].items()}
        # No image switched it on: nobody knows better.
        return BlockScales(**{name: found['input'] if scale is None else scale
                              for name, scale in found.items()})


def _observer():
    return HistogramObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine)


def _scale_of(observer):
    """A scale, or None of an observer that saw nothing but zeros."""
    if not observer.max_val.isfinite() or observer.max_val <= 0:
        return None
    return float(observer.calculate_qparams()[0])


def _at(y, positions):
    """Values (P, C) of a map at listed positions."""
    rows = y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])
    index, count = positions
    return rows if index is None else rows[index[:int(count)].long()]


def _listed(run, step):
    """Values of listed patches inside the map."""
    flat, inside = ops.patch_positions(run.index, run.count, run.out.shape[-2:],
                                       run.patch_of(step))
    return run.rows[:len(flat)][inside]
