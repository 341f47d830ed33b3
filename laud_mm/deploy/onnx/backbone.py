"""Deployed backbones as ONNX."""
from __future__ import annotations
import json
from typing import Any
from laud_mm.version import __version__
from .blocks import BlockGraph, add_stem
from .graph import Graph, info


def onnx_model(deployed: Any, form: str = 'gather', batch: Any = 'batch') -> Any:
    graph, outputs = Graph(), []
    stem = deployed.stem
    x = add_stem(graph, 'images', stem.steps, dict(zip(stem.names, stem.convs)))
    for index, stage in enumerate(deployed.stages):
        for block in stage:
            own = BlockGraph(graph, block, form)
            graph.scope = f'{block.shape.name}.'
            if form=='ifh' and 'prev' in locals(): own.nhwc = prev.nhwc
            x = own.add(x)
            prev = own
            for name, mask in own.masks.items() if deployed.with_decisions else ():
                out = graph.op('Reshape', mask, graph.ints(1), out=f'{block.shape.name}.{name}') if form == 'flat' else graph.op('Identity', mask, out=f'{block.shape.name}.{name}')
                outputs.append(info(out, 'bool', [batch] + [None] * (2 if name == 'patches'
                                                                     else 1)))
        if index in deployed.out_indices:
            out = graph.op('Identity', x, out=f'stage_{index}')
            outputs.append(info(out, 'float32', [batch, stage[-1].shape.out_channels, None,
                                                 None]))
    images = info('images', 'float32', [batch, deployed.in_channels, 'height', 'width'])
    return graph.model([images], outputs, dict(laud_mm=__version__))
