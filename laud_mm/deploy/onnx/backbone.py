"""Deployed backbones as ONNX."""
from __future__ import annotations

import json
from typing import Any

import torch

from laud_mm.specs.arguments import check_choice
from laud_mm.version import __version__

from ..convnext import DeployedConvNeXt
from ..tokens import TokenBackbone
from .blocks import SKIPS, BlockGraph, add_stem
from .graph import Graph, value
from .tokens import TokensGraph, form_of

INPUT = 'images'


def onnx_model(deployed: Any, skip: str = 'gather') -> Any:
    """Make the ONNX of a deployed backbone, in float32, for images of any size.

    The input is `images` (N, C, H, W); outputs are `stage_<index>`, and with decisions the bool
    masks `<block>.<mask>`. Blocks skip samples; what is skipped within a sample is computed and
    masked.

    Args:
        deployed (DeployedBackbone | TokenBackbone): On its own, in float32.
        skip (str): How blocks are skipped: 'gather' computes the samples that are on of any
            batch; for a batch of one image 'if' has a branch, and 'slice' none or one image.

    Returns:
        onnx.ModelProto: Its metadata `blocks` says in JSON what became of each block.

    Raises:
        ValueError: If `skip` is none of these, or the backbone has no such form.
    """
    check_choice('skip', skip, SKIPS)
    if isinstance(deployed, DeployedConvNeXt):
        raise ValueError('backbone must be a LAUDResNet, LAUDRegNet or LAUDT2TViT for ONNX, got '
                         'LAUDConvNeXt')
    if deployed.dtype != torch.float32:
        raise ValueError('precision must be fp32 for ONNX, whose runtimes choose what they '
                         f'compute in, got {deployed.dtype}')
    graph = Graph()
    batch = 'batch' if skip == 'gather' else 1
    add = _add_tokens if isinstance(deployed, TokenBackbone) else _add_maps
    outputs, forms = add(graph, deployed, skip, batch)
    images = value('float32', INPUT, [batch, deployed.in_channels, 'height', 'width'])
    return graph.model([images], outputs, dict(laud_mm=__version__, blocks=json.dumps(forms)))


def _add_maps(graph, deployed, skip, batch):
    """Add a backbone of bottleneck blocks; returns outputs, and what became of each block."""
    outputs, forms, stem = [], {}, deployed.stem
    x = add_stem(graph, INPUT, stem.steps, dict(zip(stem.names, stem.convs)))
    for index, stage in enumerate(deployed.stages):
        for block in stage:
            name = block.shape.name
            graph.scope = f'{name}.'
            own = BlockGraph(graph, block, skip)
            x, forms[name] = own.add(x), own.form
            if deployed.with_decisions:
                outputs += _add_masks(graph, name, own.masks, batch)
        if index in deployed.out_indices:
            out = graph.op('Identity', x, out=f'stage_{index}')
            outputs.append(value('float32', out, [batch, block.shape.out_channels, None, None]))
    return outputs, forms


def _add_tokens(graph, deployed, skip, batch):
    """The same of a T2T-ViT."""
    if skip != 'gather':
        raise ValueError(f"skip must be 'gather' for tokens, got {skip!r}")
    outputs, forms, net = [], {}, deployed.net
    tokens = TokensGraph(graph, net)
    x = tokens.add_stem(INPUT)
    size = graph.op('Shape', INPUT, start=2, end=4)
    sizes = dict(cls_token=1, avg_featmap=1, raw=2, featmap=3)[net.out_type]
    for index, block in enumerate(net.blocks()):
        name = block.shape.name
        graph.scope = f'{name}.'
        x, masks = tokens.add_block(x, block)
        forms[name] = form_of(block.shape)
        if deployed.with_decisions:
            outputs += _add_masks(graph, name, masks, batch)
        if index in net.out_indices:
            tokens.add_output(x, index, f'stage_{index}', size)
            outputs.append(value('float32', f'stage_{index}', [batch, *[None] * sizes]))
    return outputs, forms


def _add_masks(graph, block, masks, batch):
    return [value('bool', graph.op('Identity', mask, out=f'{block}.{name}'),
                  [batch, *[None] * (2 if name == 'patches' else 1)])
            for name, mask in masks.items()]
