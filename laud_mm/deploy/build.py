"""Make the deployed form of a backbone."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from laud_mm import ops
from laud_mm.latency.plans import PRECISIONS, load_plan
from laud_mm.models.backbones import LAUDBackbone
from laud_mm.models.backbones.bottleneck import BottleneckBackbone
from laud_mm.models.dynamic import FoldedConv
from laud_mm.models.find import find_backbones
from laud_mm.specs import BottleneckShape, Case, Program, dense_steps
from laud_mm.specs.arguments import check_choice, check_positive_int
from laud_mm.specs.bottleneck_program import can_pick

from .modules import (
    DeployedBackbone,
    DeployedBlock,
    DeployedConv,
    DeployedExcitation,
    DeployedMasker,
    DeployedStem,
    DeployedWeights,
)


def deploy(model: nn.Module, *, image_size: Sequence[int] = (224, 224), batch: int = 1,
           precision: str | None = None, plan: Any = None,
           with_decisions: bool = False) -> nn.Module:
    """The form of a network that only infers, to be run, compiled or exported.

    Norms are folded and weights packed once; every block runs the steps of one program, at any
    batch and image size. Weights that change later do not change it.

    Args:
        model (nn.Module): A LAUD backbone, which is left as it is; or a model with one, such as
            a detector, whose backbone is replaced in place.
        image_size (Sequence[int]): Height and width that programs are chosen for.
        batch (int): Images that programs are chosen for.
        precision (str, optional): 'fp32', 'bf16' or 'fp16' to compute in; default: the weights'.
        plan (str | ExecutionPlan, optional): Of `tools/latency.py plan`: which blocks are
            faster dense at its expected rate; default: the backbone's own.
        with_decisions (bool): Whether a backbone returns its decisions too.

    Returns:
        nn.Module: A `DeployedBackbone`, or the model.

    Raises:
        ValueError: If an argument is out of its range, the model has no LAUD backbone that can
            be deployed, or some module of it is not as it was built.
    """
    size: Any = tuple(image_size)
    if len(size) != 2:
        raise ValueError(f'image_size must be height and width, got {size}')
    for name, value in (('image_size', size[0]), ('image_size', size[1]), ('batch', batch)):
        check_positive_int(name, value)
    if precision is not None:
        check_choice('precision', precision, PRECISIONS)
    if isinstance(plan, str):
        plan = load_plan(plan)
    found = find_backbones(model, 'deploy')
    if with_decisions and '' not in found:
        raise ValueError('with_decisions must be False for a model with heads, which take maps '
                         'only, got True')
    made = {name: deploy_backbone(net, size, batch, precision, plan, with_decisions)
            for name, net in found.items()}
    if '' in made:
        return made['']
    for name, net in made.items():
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, net)
    return model.eval()


def deploy_backbone(backbone: LAUDBackbone, image_size: tuple[int, int], batch: int,
                    precision: str | None, plan: Any, with_decisions: bool) -> DeployedBackbone:
    """`deploy` of a backbone."""
    if not isinstance(backbone, BottleneckBackbone):
        raise ValueError('backbone must be made of bottleneck blocks to be deployed, such as '
                         f'LAUDResNet and LAUDRegNet, got {type(backbone).__name__}')
    weight = next(backbone.parameters())
    dtype = weight.dtype if precision is None else getattr(torch, PRECISIONS[precision])
    plan = plan or backbone.plan
    with torch.no_grad():
        stem = _deploy_stem(backbone, image_size, dtype)
        size, stages = backbone.stem_specs(image_size)[-1].out_size, []
        for stage in backbone.stages():
            blocks = []
            for block in stage:
                like = weight.new_empty(batch, block.shape.in_channels, *size, dtype=dtype)
                blocks.append(_deploy_block(block, like, plan))
                size = block.shape.out_size(size)
            stages.append(blocks)
    return DeployedBackbone(stem, stages, backbone.out_indices, dtype, with_decisions).eval()


def _deploy_stem(backbone, image_size, dtype):
    _check_plain('the stem', backbone.why_stem_is_not_plain())
    specs = backbone.stem_specs(image_size)
    names = [op.name for op in specs if op.kind == 'conv']
    return DeployedStem(dense_steps(specs), {
        name: DeployedConv(conv.weight.clone(), conv.bias.clone(), conv.groups, None)
        for name, conv in zip(names, backbone.fold_stem(dtype))})


def _deploy_block(block, like, plan):
    """Deploy a block for inputs such as `like`."""
    _check_plain(block.shape.name, block.why_not_plain())
    folded, shape = block.fold(like.dtype), block.shape
    case = Case(shape, like.shape[-2:], like.shape[0], like.device.type,
                ops.has_kernel(like.device), False, block.owns_input, ops.has_dot_products(like))
    program = choose_program(shape, case, plan, like, block.se_pool)
    convs = {name: _Traced(conv) for name, conv in (
        ('conv1', folded.conv1), ('conv2', folded.conv2), ('conv3', folded.conv3),
        ('shortcut', folded.shortcut)) if conv is not None}
    weights = DeployedWeights(convs, folded.excitation and DeployedExcitation(folded.excitation),
                              _deploy_maskers(block.masker))
    made = DeployedBlock(shape, program, weights, block.se_pool)
    made(torch.zeros_like(like[:1]))  # shows which layout of its weights each step reads
    for name, conv in convs.items():
        setattr(weights, name, conv.deployed())
    return made


def choose_program(shape: BottleneckShape, case: Case, plan: Any, like: Tensor,
                   se_pool: str) -> Program:
    """The one program of a block: it computes all sizes, and no choice of its rests on values."""
    dense = shape.dense_route(shape.masks)
    slices = shape.channel_skipping and not can_pick(case)  # would loop over masks that occur
    if not shape.paradigms:
        return shape.program(case)
    if slices or se_pool == 'dense' and shape.spatial_skipping:
        return shape.program(case, dense)
    times = plan.times(case) if plan is not None and plan.fits(like) else None
    if times is None:
        return shape.program(case)
    skips = plan.expected_rate ** len(shape.masks) <= times.break_even
    return shape.program(case, times.route if skips else dense)


def _deploy_maskers(maskers):
    made = {}
    for name, masker in ({} if maskers is None else maskers).named_children() \
            if maskers is not None else ():
        weight, bias = (t.clone() for t in masker.difference())
        inner = masker.inner() if name == 'channel' else None
        made[name] = DeployedMasker(
            weight, bias, getattr(masker, 'window', None), getattr(masker, 'kind', None),
            inner and tuple(t.detach().clone() for t in inner))
    return made


class _Traced(nn.Module):
    """A folded convolution that notes in which layout it is read."""

    def __init__(self, conv: FoldedConv):
        super().__init__()
        self.conv, self.read = conv, None
        self.weight, self.bias, self.groups = (conv.weight.detach().clone(),
                                               conv.bias.detach().clone(), conv.groups)

    def _note(self, prepared):
        self.read = prepared
        return prepared

    @property
    def packed(self):
        return self._note(self.conv.packed)

    @property
    def packed_winograd(self):
        return self._note(self.conv.packed_winograd)

    def packed_for(self, *args, **kwargs):
        return self._note(self.conv.packed_for(*args, **kwargs))

    def convolve(self, *args):
        return self.conv.convolve(*args)

    def deployed(self):
        return DeployedConv(self.weight, self.bias, self.groups, self.read)


def _check_plain(name, reason):
    if reason is not None:
        raise ValueError(f'{name} must be as it was built, in evaluation and without hooks, to '
                         f'be deployed: {reason}')
