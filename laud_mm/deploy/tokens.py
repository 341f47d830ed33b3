"""A T2T-ViT as exporters to ONNX take it."""
from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from laud_mm.models.backbones import LAUDT2TViT
from laud_mm.models.dynamic.plain import is_hooked
from laud_mm.specs import token_grid

from .modules import DeployedBackbone


class TokenBackbone(nn.Module):
    """A copy of a T2T-ViT, in evaluation, with what cards and checks ask of deployed networks.

    It is for ONNX and OpenVINO only: `laud_mm.deploy` has no program of one graph for it.

    Args:
        net (LAUDT2TViT): In float32, as it was built.
        with_decisions (bool): Whether decisions are returned too.

    Raises:
        ValueError: If the net computes in another type, or a module is not as it was built.
    """

    smallest_side = DeployedBackbone.smallest_side

    def __init__(self, net: LAUDT2TViT, with_decisions: bool = False):
        super().__init__()
        net = copy.deepcopy(net).eval().requires_grad_(False)
        reasons = [f'{type(module).__name__} of the stem has hooks'
                   for root in net.stem_modules() for module in root.modules() if is_hooked(module)]
        reasons += [f'{block.shape.name}: {block.why_not_plain()}' for block in net.blocks()
                   if block.why_not_plain() is not None]
        if reasons:
            raise ValueError('backbone must be as it was built, in evaluation and without hooks, '
                             f'to be deployed: {reasons[0]}')
        weight = net.cls_token
        if weight.dtype != torch.float32:
            raise ValueError(f'precision must be fp32 for ONNX, got {weight.dtype}')
        self.net, self.with_decisions = net, with_decisions
        self.dtype, self.device, self.computes_in = weight.dtype, weight.device, 'float32'
        self.in_channels, self.out_indices = net.in_channels, net.out_indices
        self.stem = SimpleNamespace(out_size=lambda size: (math.prod(token_grid(size)) + 1, 1))

    def forward(self, x: Tensor) -> tuple:
        """(N, C, H, W) images to the net's outputs, and decisions by 'block.mask'."""
        outputs = self.net(x)
        record: Any = self.net.record
        decisions = {f'{name}.{mask}': value for name, decision in record.decisions.items()
                     for mask, value in decision.masks().items()}
        return (outputs, decisions) if self.with_decisions else outputs

    def blocks(self) -> list[Any]:
        """All blocks in order: shapes, of which nothing was decided for good."""
        def about(block):
            compute = 'listed' if block.shape.paradigms else 'dense'
            return SimpleNamespace(shape=block.shape, fixed={}, kept=None, computes=compute)
        return [about(block) for block in self.net.blocks()]


def has_tokens(net: nn.Module) -> bool:
    """Whether a backbone is one that `TokenBackbone` takes."""
    return isinstance(net, LAUDT2TViT)
