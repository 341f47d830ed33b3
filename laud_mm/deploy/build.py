"""Make the deployed form of a backbone."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laud_mm import ops
from laud_mm.latency.plans import PRECISIONS, load_plan
from laud_mm.models.backbones import LAUDBackbone
from laud_mm.models.backbones.bottleneck import BottleneckBackbone
from laud_mm.models.dynamic import FoldedConv
from laud_mm.models.find import find_backbones
from laud_mm.specs import BottleneckShape, Case, Program
from laud_mm.specs.arguments import check_choice, check_fraction, check_positive_int
from laud_mm.specs.bottleneck_program import REMOVED, BottleneckRoute, can_pick

from .modules import (
    DeployedBackbone,
    DeployedBlock,
    DeployedConv,
    DeployedExcitation,
    DeployedMasker,
    DeployedStem,
    DeployedWeights,
)
from .profile import UnitProfile, load_profile
from .quantized import QuantizedBackbone
from .scales import Scales, load_scales
from .specialise import BlockParts, specialise


@dataclass(frozen=True)
class _Settings:
    """Arguments of `deploy`, checked."""
    image_size: tuple[int, int]
    batch: int
    precision: str | None
    plan: Any
    profile: UnitProfile | None
    tolerance: float
    with_decisions: bool
    scales: Scales | None = None
    integers: bool = False  # programs that quantised blocks can run


def deploy(model: nn.Module, *, image_size: Sequence[int] = (224, 224), batch: int = 1,
           precision: str | None = None, plan: Any = None,
           profile: UnitProfile | str | Path | None = None, tolerance: float = 0.0,
           with_decisions: bool = False,
           quantized: Scales | str | Path | None = None) -> nn.Module:
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
        profile (UnitProfile | str | Path, optional): How often units were on over a set of
            images, or its file, or a report of `LatencyHook`: units that were always on become
            static, those that never were vanish.
        tolerance (float): Share of images, below 0.5, in which a unit may differ from that.
        with_decisions (bool): Whether a backbone returns its decisions too.
        quantized (Scales | str | Path, optional): Of `measure_scales`, or their file: blocks
            compute in 8-bit integers, and `precision` is what the rest computes in.

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
    check_fraction('tolerance', tolerance, high=0.499)
    if isinstance(plan, (str, Path)):
        plan = load_plan(plan)
    if profile is not None and not isinstance(profile, UnitProfile):
        profile = load_profile(profile)
    if isinstance(quantized, (str, Path)):
        quantized = load_scales(quantized)
    settings = _Settings(size, batch, precision, plan, profile, tolerance, with_decisions,
                         quantized, quantized is not None)
    found = find_backbones(model, 'deploy')
    if with_decisions and '' not in found:
        raise ValueError('with_decisions must be False for a model with heads, which take maps '
                         'only, got True')
    made = {name: _deploy_backbone(net, settings) for name, net in found.items()}
    if '' in made:
        return made['']
    for name, net in made.items():
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, net)
    return model.eval()


def _deploy_backbone(backbone: LAUDBackbone, settings: _Settings) -> DeployedBackbone:
    if not isinstance(backbone, BottleneckBackbone):
        raise ValueError('backbone must be made of bottleneck blocks to be deployed, such as '
                         f'LAUDResNet and LAUDRegNet, got {type(backbone).__name__}')
    weight = next(backbone.parameters())
    precision = settings.precision
    dtype = weight.dtype if precision is None else getattr(torch, PRECISIONS[precision])
    with torch.no_grad():
        stem = _deploy_stem(backbone, settings.image_size, dtype)
        size: Any = backbone.stem_specs(settings.image_size)[-1].out_size
        stages = []
        for stage in backbone.stages():
            blocks, owned = [], False  # what a stage before wrote may be an output
            for block in stage:
                like = weight.new_empty(settings.batch, block.shape.in_channels, *size,
                                        dtype=dtype)
                blocks.append(_deploy_block(block, like, owned, settings,
                                            settings.plan or backbone.plan))
                size = block.shape.out_size(size)
                owned = owned or blocks[-1].writes_anew
            stages.append(blocks)
    made = DeployedBackbone(stem, stages, backbone.out_indices, dtype, settings.with_decisions)
    if settings.scales is not None:
        made = QuantizedBackbone(made, settings.scales)
    return made.eval()


def integer_form(backbone: LAUDBackbone) -> DeployedBackbone:
    """A backbone deployed in float, with the programs that quantised blocks run."""
    return _deploy_backbone(backbone, _Settings((224, 224), 1, 'fp32', None, None, 0.0, False,
                                                integers=True))


def _deploy_stem(backbone, image_size, dtype):
    _check_plain('the stem', backbone.why_stem_is_not_plain())
    like = next(backbone.parameters()).new_empty(1, backbone.in_channels, *image_size, dtype=dtype)
    names = [op.name for op in backbone.stem_specs(image_size) if op.kind == 'conv']
    convs = dict(zip(names, map(_Traced, backbone.fold_stem(dtype))))
    steps = backbone.stem_steps(like)
    DeployedStem(steps, convs)(torch.zeros_like(like))  # as for blocks
    return DeployedStem(steps, {name: conv.deployed() for name, conv in convs.items()})


def _deploy_block(block, like, owned, settings, plan):
    """Deploy a block for inputs such as `like`, which it may write over where it owns them."""
    _check_plain(block.shape.name, block.why_not_plain())
    parts = BlockParts(block.shape, block.fold(like.dtype), _deploy_maskers(block.masker))
    if settings.profile is not None and block.masker is not None:
        parts = specialise(parts, settings.profile, settings.tolerance)
    shape, folded = parts.shape, parts.folded
    case = Case(shape, like.shape[-2:], like.shape[0], like.device.type,
                ops.has_kernel(like.device, like.dtype), False, owned, ops.has_dot_products(like))
    if parts.removed:
        program = shape.program(case, REMOVED)
    elif settings.integers:
        program = integer_program(shape, case)
    else:
        program = choose_program(shape, case, plan, like, block.se_pool)
    names = ('shortcut',) if parts.removed else ('conv1', 'conv2', 'conv3', 'shortcut')
    convs = {name: _Traced(getattr(folded, name)) for name in names
             if getattr(folded, name) is not None}
    excitation = None if parts.removed else folded.excitation
    weights = DeployedWeights(convs, excitation and DeployedExcitation(excitation),
                              parts.maskers)
    made = DeployedBlock(shape, program, weights, block.se_pool, parts.kept, parts.fixed)
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
        program = shape.program(case)
        return program if program.break_even > 0 else shape.program(case, dense)
    skips = plan.expected_rate ** len(shape.masks) <= times.break_even
    return shape.program(case, times.route if skips else dense)


def integer_program(shape: BottleneckShape, case: Case) -> Program:
    """The program of a quantised block, which lists what it computes even if that is all.

    Raises:
        ValueError: If it skips channels.
    """
    if shape.channel_skipping:
        raise ValueError('paradigm must be layer, spatial or None to be quantised, got '
                         f'{shape.paradigm!r} of {shape.name}')
    # Wherever it runs, as on a CPU: the integer operations list positions.
    own = replace(case, device='cpu', owns_input=True)
    return shape.program(own, BottleneckRoute('listed'))


def _deploy_maskers(maskers):
    made = {}
    differences = {} if maskers is None else maskers.differences()
    for name, (weight, bias) in differences.items():
        weight, bias, masker = weight.clone(), bias.clone(), getattr(maskers, name)
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

    @property
    def packed_stem(self):
        return self._note(self.conv.packed_stem)

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
