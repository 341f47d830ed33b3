"""The deployed form of a backbone: its programs, and what their steps read, as buffers.

Steps run by the same table as in evaluation (`laud_mm.models.dynamic`). What is chosen there
image by image, the program of a block, is chosen once: sizes stay free, and counts stay in
tensors, so that a compiler can follow it all in one graph.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from laud_mm import ops
from laud_mm.models.dynamic import BottleneckRun, Excitation, MapSums, StemRun, run_steps
from laud_mm.models.dynamic.maskers import decide_channels, decide_patches
from laud_mm.models.dynamic.precision import no_autocast
from laud_mm.specs import BottleneckShape, Program, Size, Step


class DeployedConv(nn.Module):
    """A folded convolution, in the one layout that its step reads.

    Args:
        weight (Tensor): (out, in / groups, k, k).
        bias (Tensor): (out,).
        groups (int): Groups of the convolution.
        prepared (Tensor | None): The weights as a kernel reads them.
    """
    weight: Tensor
    bias: Tensor
    packed: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor, groups: int, prepared: Tensor | None):
        super().__init__()
        self.groups = groups
        self.register_buffer('weight', weight)
        self.register_buffer('bias', bias)
        self.register_buffer('packed', prepared)

    @property
    def packed_winograd(self) -> Tensor | None:
        """The same for Winograd's."""
        return self.packed

    @property
    def packed_stem(self) -> Tensor | None:
        """The same for the first convolution of a network."""
        return self.packed

    def convolve(self, x: Tensor, stride: int, dilation: int) -> Tensor:
        """Compute a whole map, see `FoldedConv`."""
        return ops.conv_map(x, self.weight, self.bias, stride, dilation, self.groups)

    def packed_for(self, group_size: int = 0, inputs: bool = False) -> Tensor | None:
        """The same for kernels that pick channels."""
        return self.packed


class DeployedExcitation(nn.Module):
    """An `Excitation` whose tensors are buffers."""

    def __init__(self, excitation: Excitation):
        super().__init__()
        for name, tensor in vars(excitation).items():
            self.register_buffer(name, tensor.detach().clone())

    weights = Excitation.weights
    scales = Excitation.scales


class DeployedMasker(nn.Module):
    """Decides as a masker does in evaluation.

    Args:
        weight (Tensor): Of the difference of logits.
        bias (Tensor): Likewise.
        window (int | None): Pooling window of a masker of patches.
        kind (str | None): Kind of a masker of channels.
        inner (tuple[Tensor, Tensor] | None): Weight and bias of its layer before the last.
    """
    weight: Tensor
    bias: Tensor
    inner_weight: Tensor | None
    inner_bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor, window: int | None = None,
                 kind: str | None = None, inner: tuple[Tensor, Tensor] | None = None):
        super().__init__()
        self.window, self.kind = window, kind
        self.register_buffer('weight', weight)
        self.register_buffer('bias', bias)
        self.register_buffer('inner_weight', inner and inner[0])
        self.register_buffer('inner_bias', inner and inner[1])

    def with_difference(self, weight: Tensor, bias: Tensor) -> DeployedMasker:
        """The same with another difference of logits."""
        inner = None if self.inner_weight is None or self.inner_bias is None else (
            self.inner_weight, self.inner_bias)
        return DeployedMasker(weight, bias, self.window, self.kind, inner)

    def decide_by(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The mask (N, *units) bool."""
        if self.kind is None:
            return decide_patches(x, weight, bias, self.window)
        inner = None if self.inner_weight is None or self.inner_bias is None else (
            self.inner_weight, self.inner_bias)
        return decide_channels(x, weight, bias, self.kind, inner)


class DeployedWeights(nn.Module):
    """What the steps of a block read: a `FoldedBottleneck` whose tensors are buffers.

    Args:
        convs (dict[str, DeployedConv]): 'conv1', 'conv2', 'conv3' and 'shortcut'.
        excitation (DeployedExcitation | None): Squeeze-and-excitation.
        masker (nn.ModuleDict): `DeployedMasker`s by paradigm.
    """
    ones_channel = False

    def __init__(self, convs: dict[str, DeployedConv], excitation: DeployedExcitation | None,
                 masker: dict[str, DeployedMasker]):
        super().__init__()
        for name, conv in convs.items():
            self.add_module(name, conv)
        self.excitation = excitation
        self.masker = nn.ModuleDict(masker)

    @property
    def maskers(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Weight and bias of each masker's difference of logits."""
        own: Any = self.masker.items()
        return {name: (masker.weight, masker.bias) for name, masker in own}

    def named(self, part: str) -> Any:
        """The convolution of a part, see `FoldedBottleneck.named`."""
        return getattr(self, 'shortcut' if part == 'downsample' else part)


class DeployedBlock(nn.Module):
    """A block as its program's steps and what they read.

    Args:
        shape (BottleneckShape): Geometry, and what it decides.
        program (Program): Its steps.
        weights (DeployedWeights): What they read.
        se_pool (str): See `LAUDRegNet`.
        kept (tuple[int, ...] | None): Channel groups that it still decides on; None: all.
        fixed (dict[str, tuple], optional): See `BlockParts`.
    """

    def __init__(self, shape: BottleneckShape, program: Program, weights: DeployedWeights,
                 se_pool: str = 'computed', kept: tuple[int, ...] | None = None,
                 fixed: dict[str, tuple] | None = None):
        super().__init__()
        self.clock: Any = None  # see `run_steps`
        self.shape, self.program, self.se_pool = shape, program, se_pool
        self.kept, self.fixed = kept, fixed or {}
        self.weights = weights

    @property
    def computes(self) -> str:
        """'listed': what is on; 'dense': everything, on whatever route; 'none': the shortcut."""
        route: Any = self.program.route
        everything = not self.shape.paradigms or route.masks
        return 'dense' if route.compute == 'listed' and everything else route.compute

    @property
    def writes_anew(self) -> bool:
        """Whether its output is a map of its own, or written over an input that it owns."""
        return self.program.route.compute != 'none' or self.shape.downsample

    @property
    def masker(self) -> Any:
        """The maskers, as steps ask for them."""
        return _Named(self.weights.masker)

    def forward(self, x: Tensor, sums: MapSums | None = None
                ) -> tuple[Tensor, dict[str, Tensor], MapSums | None]:
        """Decide and compute.

        Args:
            x (Tensor): (N, C, H, W); may be written over.
            sums (MapSums | None): See `run_program`.

        Returns:
            tuple[Tensor, dict[str, Tensor], MapSums | None]: The output, the masks by name, and
            the sums of the output, where they are known.
        """
        run = self.start(x.contiguous(memory_format=torch.channels_last))
        run.sums = sums
        run_steps(run, self.program.deciding, self.clock)
        run.decision = run.decided()
        run_steps(run, self.program.computing, self.clock)
        return run.out, run.decision.masks(), run.sums

    def start(self, x: Tensor) -> Any:
        """What its steps read and write."""
        return BottleneckRun(self, x, self.weights)


class _Named:
    """Modules of a dict as attributes."""

    def __init__(self, modules):
        self.modules = modules

    def __getattr__(self, name):
        return self.modules[name]


class DeployedStem(nn.Module):
    """A folded stem.

    Args:
        steps (Sequence[Step]): Its steps.
        convs (dict[str, DeployedConv]): Its convolutions by the names of their ops.
    """

    def __init__(self, steps: Sequence[Step], convs: dict[str, DeployedConv]):
        super().__init__()
        self.steps, self.names = tuple(steps), tuple(convs)
        self.convs = nn.ModuleList(convs.values())

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) images to the first block's input."""
        x = x.contiguous(memory_format=torch.channels_last)
        convs: Any = self.convs
        run = StemRun(x, dict(zip(self.names, convs)))
        run_steps(run, self.steps)
        return run.y

    def out_size(self, size: Size) -> Size:
        """Height and width that it makes of those of images."""
        for step in self.steps:
            for op in (step.op, *step.inner) if step.kind != 'relu' else ():
                # Of windows side by side, those that the map does not fill are left out.
                padded = 0 if step.kind == 'patchify' else op.stride - 1
                size = tuple((n + padded) // op.stride for n in size)
        return size


class DeployedBackbone(nn.Module):
    """A backbone that only infers: folded, packed, no training code, one graph.

    `deploy` makes it. It computes on the device and in the precision that it was made for.

    Args:
        stem (DeployedStem): The stem.
        stages (Sequence[Sequence[nn.Module]]): The blocks of each stage.
        out_indices (Sequence[int]): Stages whose outputs are returned.
        dtype (torch.dtype): What it computes in.
        with_decisions (bool): Whether decisions are returned too.
    """
    # A map of one position would be another graph; the last one of an image of 32 pixels is.
    smallest_side = 33

    def __init__(self, stem: DeployedStem, stages: Sequence[Sequence[nn.Module]],
                 out_indices: Sequence[int], dtype: torch.dtype, with_decisions: bool = False):
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.out_indices, self.dtype = tuple(out_indices), dtype
        self.with_decisions = with_decisions

    def forward(self, x: Tensor) -> tuple:
        """Compute the feature maps.

        Args:
            x (Tensor): (N, in_channels, H, W) images.

        Returns:
            tuple: One (N, C', H', W') map per stage of `out_indices`, in the images' type and
            memory format. With `with_decisions`, such a tuple and a dict: bool masks by
            'block.mask', such as 'layer1.0.patches'; what is decided for good is not there.
        """
        outputs, decisions = [], {}
        with no_autocast(x.device):
            y, sums = self.start(x), None
            for index, blocks in enumerate(self.stages):
                own: Any = blocks
                for block in own:
                    y, masks, sums = block(y, sums)
                    decisions.update({f'{block.shape.name}.{name}': mask
                                      for name, mask in masks.items()})
                if index in self.out_indices:
                    outputs.append(_as_given(self.output(y, index), x))
        return (tuple(outputs), decisions) if self.with_decisions else tuple(outputs)

    def start(self, x: Tensor) -> Tensor:
        """Images to the first block's input."""
        return self.stem(x.to(self.dtype))

    def output(self, y: Tensor, stage: int) -> Tensor:
        """What is returned of a stage's map."""
        return y

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        weight: Any = self.stem.convs[0].weight
        return weight.shape[1]

    @property
    def computes_in(self) -> str:
        """Type that most of it computes in."""
        return str(self.dtype).removeprefix('torch.')

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        weight: Any = self.stem.convs[0].weight
        return weight.device

    def blocks(self) -> list[Any]:
        """All blocks in order."""
        stages: Any = self.stages
        return [block for blocks in stages for block in blocks]

    def _apply(self, fn: Callable, recurse: bool = True) -> DeployedBackbone:
        own = self.stem.convs[0].bias
        probe = fn(own)
        if (probe.dtype, probe.device) != (own.dtype, own.device):
            raise RuntimeError(
                f'a deployed backbone stays {own.dtype} on {own.device}, for which its weights '
                f'are packed, got {probe.dtype} on {probe.device}: move the backbone, then '
                'deploy it')
        return self


def _as_given(y, x):
    """A map in the type and memory format of the images."""
    # As `is_channels_last`, which asks for the batch too: a graph for all batches knows none.
    channels, width = x.shape[1], x.shape[3]
    given_last = channels > 1 and x.stride()[1:] == (1, width * channels, channels)
    return y.to(x.dtype) if given_last else y.to(x.dtype).contiguous()
