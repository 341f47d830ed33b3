"""Bottleneck backbones as ONNX."""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from laud_mm.models.backbones.bottleneck import BottleneckBackbone
from laud_mm.version import __version__

from .blocks import BlockGraph, add_stem
from .graph import Graph

# What becomes of a block; `block_forms` gives these, files hold them as metadata `blocks`.
STATIC = 'static'
GONE = 'gone, never on'
MASKED = 'everything computed, then masked'
SKIPPED = {True: 'skipped by If', False: 'samples gathered, computed, scattered'}


def why_not_skipping(backbone: Any) -> str | None:
    """Why a backbone has no ONNX that skips; None: it has one."""
    if not isinstance(backbone, BottleneckBackbone):
        return f'{type(backbone).__name__} has no bottleneck blocks'
    reasons = [('the stem', backbone.why_stem_is_not_plain())]
    reasons += [(block.shape.name, block.why_not_plain()) for block in backbone.blocks()]
    return next((f'{name} {reason}' for name, reason in reasons if reason is not None), None)


def block_forms(backbone: Any, batch_one: bool = False,
                rates: Mapping[str, float] | None = None) -> dict[str, str]:
    """What becomes of each block of a backbone in ONNX.

    Args:
        backbone (BottleneckBackbone): Its blocks.
        batch_one (bool): See `skipping_model`.
        rates (Mapping[str, float], optional): See `skipping_model`.

    Returns:
        dict[str, str]: By name of the block.

    Raises:
        ValueError: If rates name other blocks, or leave some out.
    """
    shapes = [block.shape for block in backbone.blocks()]
    if rates is not None and set(rates) != {shape.name for shape in shapes}:
        raise ValueError(f'rates must be those of the {len(shapes)} blocks of the backbone, '
                         f'got {len(rates)} names, such as {next(iter(rates), None)!r}')
    return {shape.name: _form(shape, batch_one, rates and rates[shape.name]) for shape in shapes}


def _form(shape, batch_one, rate):
    if not shape.paradigms or rate == 1:
        return STATIC
    if rate == 0 and not shape.channel_skipping:
        return GONE
    forms = [SKIPPED[batch_one]] * shape.layer_skipping
    others = [p for p in shape.paradigms if p != 'layer']
    forms += [f'{" and ".join(others)}: {MASKED}'] * bool(others)
    return '; '.join(forms)


def skipping_model(backbone: Any, batch_one: bool = False, decisions: bool = False,
                   rates: Mapping[str, float] | None = None) -> Any:
    """Make the ONNX of a backbone with layer skipping that skips, in float32.

    Norms are folded. The input is `images`, (N, C, H, W) of any height and width; outputs are
    `stage_<index>`. What is skipped besides whole blocks is computed and masked.

    Args:
        backbone (BottleneckBackbone): Left as it is; evaluated, whatever its mode.
        batch_one (bool): N is 1, and a block that is off is a branch of an `If`. Else N is free,
            and the samples that are on are gathered, computed and scattered.
        decisions (bool): Also give the masks: bool outputs `<block>.<mask>`, as a
            `Decision` has them.
        rates (Mapping[str, float], optional): Rate of each block over a set of images. Blocks
            that are always on (1) lose their maskers, those that never are (0) all but
            their shortcut.

    Returns:
        onnx.ModelProto: With `blocks` among its metadata, see `block_forms`, as JSON.

    Raises:
        ValueError: If the backbone has no such form, or rates do not fit it.
        ImportError: If onnx is missing.
    """
    from onnx import TensorProto, helper
    reason = why_not_skipping(backbone)
    if reason is not None:
        raise ValueError(f'backbone must consist of plain bottleneck blocks to skip in ONNX, but '
                         f'{reason}')
    forms = block_forms(backbone, batch_one, rates)
    graph, outputs, batch = Graph(), [], 1 if batch_one else 'batch'

    def info(name, kind, *sizes):
        return helper.make_tensor_value_info(name, kind, [batch, *sizes])

    with torch.no_grad():
        x = add_stem(graph, 'images', backbone.stem_specs((1, 1)),
                     backbone.fold_stem(torch.float32))
        for index, stage in enumerate(backbone.stages()):
            for block in stage:
                own = BlockGraph(graph, block, batch_one)
                form = forms[block.shape.name]
                x = own.add_shortcut(x) if form == GONE else own.add(x, static=form == STATIC)
                for name, mask in own.masks.items() if decisions else ():
                    out = graph.op('Identity', mask, out=f'{block.shape.name}.{name}')
                    outputs.append(info(out, TensorProto.BOOL,
                                        *[None] * (2 if name == 'patches' else 1)))
            if index in backbone.out_indices:
                out = graph.op('Identity', x, out=f'stage_{index}')
                outputs.append(info(out, TensorProto.FLOAT, stage[-1].shape.out_channels,
                                    None, None))
    images = info('images', TensorProto.FLOAT, backbone.in_channels, 'height', 'width')
    return graph.model([images], outputs, dict(laud_mm=__version__, blocks=json.dumps(forms)))
