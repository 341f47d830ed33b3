"""Deployed backbones as ONNX."""
from __future__ import annotations

import json
from typing import Any

import torch

from laud_mm.specs.arguments import check_choice
from laud_mm.version import __version__

from .blocks import SKIPS, BlockGraph, add_stem
from .graph import Graph, value

INPUT = 'images'


def onnx_model(deployed: Any, skip: str = 'gather') -> Any:
    """Make the ONNX of a deployed backbone, in float32, for images of any size.

    The input is `images` (N, C, H, W); outputs are `stage_<index>`, and with decisions the bool
    masks `<block>.<mask>`. Blocks skip samples; what is skipped within a sample is computed and
    masked.

    Args:
        deployed (DeployedBackbone): On its own, in float32.
        skip (str): How blocks are skipped: 'gather' computes the samples that are on of any
            batch; for a batch of one image 'if' has a branch, and 'slice' none or one image.

    Returns:
        onnx.ModelProto: Its metadata `blocks` says in JSON what became of each block.

    Raises:
        ValueError: If `skip` is none of these, or the backbone computes in another type.
    """
    check_choice('skip', skip, SKIPS)
    if deployed.dtype != torch.float32:
        raise ValueError('precision must be fp32 for ONNX, whose runtimes choose what they '
                         f'compute in, got {deployed.dtype}')
    graph, outputs, forms = Graph(), [], {}
    batch = 'batch' if skip == 'gather' else 1
    stem = deployed.stem
    x = add_stem(graph, INPUT, stem.steps, dict(zip(stem.names, stem.convs)))
    for index, stage in enumerate(deployed.stages):
        for block in stage:
            graph.scope = f'{block.shape.name}.'
            own = BlockGraph(graph, block, skip)
            x = own.add(x)
            forms[block.shape.name] = own.form
            for name, mask in own.masks.items() if deployed.with_decisions else ():
                out = graph.op('Identity', mask, out=f'{block.shape.name}.{name}')
                sizes = [None] * (2 if name == 'patches' else 1)
                outputs.append(value('bool', out, [batch, *sizes]))
        if index in deployed.out_indices:
            out = graph.op('Identity', x, out=f'stage_{index}')
            outputs.append(value('float32', out, [batch, block.shape.out_channels, None, None]))
    images = value('float32', INPUT, [batch, deployed.in_channels, 'height', 'width'])
    return graph.model([images], outputs, dict(laud_mm=__version__, blocks=json.dumps(forms)))
