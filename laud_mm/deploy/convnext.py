"""The deployed form of a ConvNeXt."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from laud_mm import ops
from laud_mm.latency.plans import PRECISIONS
from laud_mm.models.backbones import LAUDConvNeXt
from laud_mm.models.dynamic import DownsampleRun, FoldedConvNeXt
from laud_mm.models.dynamic.convnext import FoldedNorm, FoldedPatchify, fold_norm
from laud_mm.specs import Case, Program

from .modules import DeployedBackbone, DeployedBlock, DeployedConv, DeployedMasker, DeployedStem
from .parts import check_plain, deploy_maskers
from .specialise import BlockParts, specialise


class _DeployedLayer(nn.Module):
    """A folded layer whose tensors are buffers."""

    def __init__(self, layer: Any):
        super().__init__()
        for name, value in vars(layer).items():
            if isinstance(value, Tensor) or value is None:
                self.register_buffer(name, None if value is None else value.detach().clone())
            else:
                setattr(self, name, value)


class DeployedNorm(_DeployedLayer):
    """A `FoldedNorm`."""
    forward = FoldedNorm.__call__


class DeployedPatchify(_DeployedLayer):
    """A `FoldedPatchify`."""
    forward = FoldedPatchify.__call__


class DeployedConvNeXtWeights(nn.Module):
    """What the steps of a block read: a `FoldedConvNeXt` whose tensors are buffers.

    Args:
        folded (FoldedConvNeXt): The weights.
        masker (dict[str, DeployedMasker]): By paradigm.
        listed (bool): Whether patches are listed: then kernels read them prepared.
    """

    def __init__(self, folded: FoldedConvNeXt, masker: dict[str, DeployedMasker], listed: bool):
        super().__init__()
        for name in ('depthwise', 'pointwise1', 'pointwise2'):
            conv = getattr(folded, name)
            prepared = None
            if listed:
                prepared = folded.taps if name == 'depthwise' else conv.packed
            self.add_module(name, DeployedConv(conv.weight.detach().clone(),
                                               conv.bias.detach().clone(), conv.groups, prepared))
        self.norm = DeployedNorm(folded.norm)
        self.masker = nn.ModuleDict(masker)

    @property
    def maskers(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Weight and bias of each masker's difference of logits."""
        own: Any = self.masker.items()
        return {name: (masker.weight, masker.bias) for name, masker in own}

    @property
    def taps(self) -> Any:
        """See `FoldedConvNeXt.taps`."""
        depthwise: Any = self.depthwise
        return depthwise.packed

    def named(self, part: str) -> Any:
        """The layer of a part."""
        return getattr(self, part)


class DeployedDownsample(DeployedBlock):
    """The norm and the convolution between two stages."""

    def start(self, x: Tensor) -> Any:
        weights: Any = self.weights
        return DownsampleRun(x, weights)


class DeployedConvNeXt(DeployedBackbone):
    """A ConvNeXt that only infers, see `DeployedBackbone`.

    Args:
        stem (DeployedStem): The stem.
        stages (Sequence[Sequence[nn.Module]]): The blocks of each stage.
        norms (dict[int, DeployedNorm]): By stage, of the outputs.
        means (bool): Whether outputs are means over the positions.
        **kwargs: As of `DeployedBackbone`.
    """
    smallest_side = 64  # the last map of an image of 63 pixels has one position

    def __init__(self, stem: DeployedStem, stages: Sequence[Sequence[nn.Module]],
                 norms: dict[int, DeployedNorm], means: bool, **kwargs: Any):
        super().__init__(stem, stages, **kwargs)
        self.norms = nn.ModuleDict({str(stage): norm for stage, norm in norms.items()})
        self.means = means

    def output(self, y: Tensor, stage: int) -> Tensor:
        norm = self.norms[str(stage)]
        return norm(y.mean((2, 3), keepdim=True)).flatten(1) if self.means else norm(y)


def deploy_convnext(backbone: LAUDConvNeXt, settings: Any) -> DeployedConvNeXt:
    """The deployed form of a ConvNeXt; `settings` as `deploy` checked them.

    Raises:
        ValueError: If some module is not as it was built, or integers are asked for.
    """
    if settings.integers:
        raise ValueError('backbone must be a LAUDResNet or LAUDRegNet to be quantised, got '
                         'LAUDConvNeXt')
    weight: Any = next(backbone.parameters())
    dtype = weight.dtype
    if settings.precision is not None:
        dtype = getattr(torch, PRECISIONS[settings.precision])
    check_plain('the stem', backbone.why_stem_is_not_plain())
    with torch.no_grad():
        steps = backbone.stem_steps(weight.new_empty(1, 3, *settings.image_size))
        stem = DeployedStem(steps, _layers(backbone.fold_stem(dtype)))
        size, stages = stem.out_size(settings.image_size), []
        for stage in backbone.stages():
            stages.append([_deploy_block(block, size, weight, dtype, settings)
                           for block in stage])
            for block in stage:
                size = block.shape.out_size(size)
        norms = {index: DeployedNorm(fold_norm(backbone.get_submodule(f'norm{index}'), dtype))
                 for index in backbone.out_indices}
    made = DeployedConvNeXt(stem, stages, norms, backbone.gap_before_final_norm,
                            out_indices=backbone.out_indices, dtype=dtype,
                            with_decisions=settings.with_decisions)
    made.eval()
    return made


def _layers(folded):
    """The layers of the stem, or of what lies between two stages, by part."""
    folded['conv'].packed  # noqa: B018 laid out once, and a buffer then
    return dict(conv=DeployedPatchify(folded['conv']), norm=DeployedNorm(folded['norm']))


def _deploy_block(block, size, weight, dtype, settings):
    check_plain(block.shape.name, block.why_not_plain())
    folded = block.fold(dtype)
    like = weight.new_empty(settings.batch, block.shape.in_channels, *size, dtype=dtype)
    case = Case(block.shape, size, settings.batch, like.device.type,
                ops.has_kernel(like.device, dtype), False, block.owns_input)
    if not isinstance(folded, FoldedConvNeXt):
        return DeployedDownsample(block.shape, block.shape.program(case),
                                  nn.ModuleDict(_layers(folded)))
    parts: Any = BlockParts(block.shape, folded, deploy_maskers(block.masker))
    if settings.profile is not None and block.masker is not None:
        parts = specialise(parts, settings.profile, settings.tolerance)
    program = choose_program(parts.shape, replace(case, shape=parts.shape), parts.removed)
    weights = DeployedConvNeXtWeights(parts.folded, parts.maskers,
                                      program.route.compute == 'listed')
    return DeployedBlock(parts.shape, program, weights, kept=parts.kept, fixed=parts.fixed)


def choose_program(shape: Any, case: Case, removed: bool) -> Program:
    """The one program of a block, see `build.choose_program`."""
    program: Program = shape.program(case, shape.removed_route if removed else None)
    if program.break_even > 0:
        return program
    return shape.program(case, shape.dense_route(shape.masks))
