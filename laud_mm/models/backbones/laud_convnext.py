"""LAUD-ConvNeXt: a ConvNeXt whose blocks decide per image what to compute."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from laud_mm.models.dynamic import (
    BlockMasker,
    BottleneckRun,
    Decision,
    DownsampleRun,
    FoldCache,
    FoldedConvNeXt,
    ForwardPass,
    StemRun,
    expand_patches,
    fold_convnext,
    fold_downsampling,
    run_steps,
)
from laud_mm.models.dynamic.convnext import norm_channels
from laud_mm.models.dynamic.plain import (
    plain,
    settings,
    why_no_operations,
    why_not_plain,
)
from laud_mm.models.dynamic.work import convnext_work, whole_batch
from laud_mm.registry import MODELS
from laud_mm.specs import (
    Case,
    ConvNeXtShape,
    NetworkSpec,
    OpSpec,
    Size,
    convnext_shapes,
    convnext_spec,
    convnext_stem_specs,
)
from laud_mm.specs.arguments import Paradigm, check_fraction, check_positive_int
from laud_mm.specs.convnext import DOWNSAMPLING, STEM_STRIDE, WINDOW, convnext_arch
from laud_mm.weights.convnext import adapt_convnext

from .base import LAUDBackbone, check_unused
from .block import DynamicBlock

EPS = 1e-6
# Arguments of mmpretrain's ConvNeXt that are not supported, with what asks for nothing.
_UNUSED = dict(stem_patch_size=STEM_STRIDE, norm_cfg=dict(type='LN2d', eps=EPS),
               act_cfg=dict(type='GELU'), linear_pw_conv=True, use_grn=False)


@plain
class ChannelNorm(nn.LayerNorm):
    """Layer norm of maps (N, C, H, W) over their channels."""

    def forward(self, x: Tensor) -> Tensor:
        return norm_channels(x, self.weight, self.bias, self.eps)


@plain
class ToRows(nn.Module):
    """Maps (N, C, H, W) to (N, H, W, C); a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


@plain
class ToMap(nn.Module):
    """The reverse of `ToRows`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


def _settings(root):
    return [settings(module) for module in root.modules()]


class Downsample(DynamicBlock):
    """The norm and the convolution between two stages; decides nothing."""

    folds = True

    def __init__(self, shape):
        super().__init__(shape)
        self.add_module('0', ChannelNorm(shape.in_channels, eps=EPS))
        self.add_module('1', nn.Conv2d(shape.in_channels, shape.out_channels, DOWNSAMPLING,
                                       DOWNSAMPLING))
        self.masker = None
        self._built = _settings(self)

    def layers(self):
        """The norm and the convolution."""
        return self.get_submodule('0'), self.get_submodule('1')

    def run_masked(self, x, decision):
        norm, conv = self.layers()
        return conv(norm(x))

    def start(self, x, static, weights):
        return DownsampleRun(x.contiguous(memory_format=torch.channels_last), weights)

    def why_not_plain(self):
        return _why_changed(self) or super().why_not_plain()

    def fold(self, dtype):
        norm, conv = self.layers()
        return fold_downsampling(conv, norm, dtype)

    def exact_work(self, case, route, decision):
        return whole_batch(case)

    def static_decision(self):
        return Decision()


def _why_changed(block):
    """Why a block's layers are not those that it was built with; None: they are."""
    norms = [m for m in block.modules() if isinstance(m, nn.LayerNorm)]
    if _settings(block) != block._built or any(m.weight is None or m.bias is None for m in norms):
        return 'its layers are not those that it was built with'
    return None


class ConvNeXtBlock(DynamicBlock):
    """A ConvNeXt block, with torchvision's names, that computes what its masker decides.

    Args:
        shape (ConvNeXtShape): Geometry and paradigms.
        layer_scale (float): What its scale of every channel starts from; 0: it has none.
        drop_path_rate (float): Share of samples of which the branch is dropped in training.
        with_cp (bool): Recompute activations in the backward pass.
        noise (bool): Whether the masker samples in training.
    """

    folds = True

    def __init__(self, shape: ConvNeXtShape, layer_scale: float = 1e-6,
                 drop_path_rate: float = 0., with_cp: bool = False, noise: bool = True):
        super().__init__(shape, with_cp)
        width, hidden = shape.channels, shape.hidden
        self.block = nn.Sequential(
            nn.Conv2d(width, width, WINDOW, padding=WINDOW // 2, groups=width), ToRows(),
            nn.LayerNorm(width, eps=EPS), nn.Linear(width, hidden), nn.GELU(),
            nn.Linear(hidden, width), ToMap())
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), float(layer_scale))) \
            if layer_scale else None
        self.drop_path_rate = drop_path_rate
        self.masker = BlockMasker(shape, noise) if shape.paradigms else None
        self.owns_input = True  # outputs are normed: nobody else holds a stage's last map
        self._built = _settings(self)

    def decide(self, x: Tensor) -> tuple[Decision]:
        masker: Any = self.masker
        return (masker(x),)

    def run_masked(self, x: Tensor, decision: Decision, *found: Any) -> Tensor:
        y: Tensor = self.block(x)
        if self.layer_scale is not None:
            y = self.layer_scale * y
        if decision.patches is not None:
            y = y * expand_patches(decision.patches, y.shape[-2:],
                                   self.shape.spatial_granularity).to(y.dtype)[:, None]
        if decision.layer is not None:
            y = y * decision.layer.to(y.dtype)[:, :, None, None]
        return x + drop_samples(y, self.drop_path_rate if self.training else 0.)

    def start(self, x: Tensor, static: bool, weights: Any) -> BottleneckRun:
        return BottleneckRun(self, x.contiguous(memory_format=torch.channels_last), weights)

    def why_not_plain(self) -> str | None:
        if self.training and self.drop_path_rate:
            return 'its branch drops: it is in training mode'
        return _why_changed(self) or super().why_not_plain()

    def fold(self, dtype: torch.dtype | None) -> FoldedConvNeXt:
        layers: Any = self.block
        depthwise, _, norm, pointwise1, _, pointwise2, _ = layers
        return fold_convnext(depthwise, norm, pointwise1, pointwise2, self.layer_scale,
                             {} if self.masker is None else self.masker.differences(), dtype)

    def exact_work(self, case: Case, route: Any, decision: Decision) -> dict[str, Any]:
        return convnext_work(case, route, decision)

    def static_decision(self) -> Decision:
        return Decision()


def drop_samples(y, rate):
    """Stochastic depth: zero a share of samples, and scale up the others to the same mean."""
    if not rate:
        return y
    kept = torch.rand(len(y), *(1,) * (y.dim() - 1), device=y.device) >= rate
    return y * (kept / (1 - rate)).to(y.dtype)


@MODELS.register_module()
class LAUDConvNeXt(LAUDBackbone):
    """ConvNeXt with layer or spatial skipping (LAUDNet, section 3, on another network).

    State-dict keys of the static part are torchvision's, and mmpretrain's load too (see
    `adapt_convnext`); the norms of outputs are called `norm<stage>`, as in mmpretrain.
    Maskers add `<block>.masker.*`.

    Args:
        arch (str | dict): 'tiny', 'small', or a dict of `depths` (blocks of every stage) and
            `channels`.
        in_channels (int): Channels of the images.
        out_indices (int | Sequence[int]): Stages whose outputs are returned, normed; -1: the last.
        gap_before_final_norm (bool): Return means over the positions, (N, C), as classifiers
            need them, not maps.
        frozen_stages (int): Stem (0) and stages up to this one, with the downsampling before
            them, are frozen; -1: none. Maskers of frozen stages train unless a checkpoint
            brought their weights.
        drop_path_rate (float): Stochastic depth of the last block; rises from 0 linearly.
        layer_scale_init_value (float): What the scales of branches start from; 0: there are none.
        with_cp (bool): Recompute block activations in the backward pass.
        paradigm (str | None | Collection): What is skipped: 'layer', 'spatial', a tuple or set of
            both, or None (static); a list: what each stage skips.
        spatial_granularity (int | Sequence[int]): S, side of a patch in positions.
        noise (bool): Gumbel noise in training.
        execution (str): 'auto', 'masked' or 'skipping', see `LAUDBackbone`.
        init_cfg (dict | list[dict], optional): mmengine initialisation.
        **unused: Arguments of mmpretrain's class that are not supported, where they ask for
            nothing, such as `use_grn=False`.

    Raises:
        ValueError: For an argument out of its range, with the field's name.

    Examples:
        >>> import torch
        >>> from laud_mm.models.backbones import LAUDConvNeXt
        >>> net = LAUDConvNeXt('tiny', out_indices=(0, 1, 2, 3), gap_before_final_norm=False)
        >>> [tuple(y.shape) for y in net.eval()(torch.rand(1, 3, 64, 64))]
        [(1, 96, 16, 16), (1, 192, 8, 8), (1, 384, 4, 4), (1, 768, 2, 2)]
    """

    def __init__(self, arch: str | dict = 'tiny', in_channels: int = 3,
                 out_indices: int | Sequence[int] = -1, gap_before_final_norm: bool = True,
                 frozen_stages: int = -1, drop_path_rate: float = 0.,
                 layer_scale_init_value: float = 1e-6, with_cp: bool = False,
                 paradigm: Paradigm = 'layer',
                 spatial_granularity: int | Sequence[int] = (4, 4, 2, 1), noise: bool = True,
                 execution: str = 'auto', init_cfg: dict | list[dict] | None = None,
                 **unused: Any):
        init_cfg = check_unused(type(self).__name__, unused, init_cfg, _UNUSED)
        depths, channels = convnext_arch(arch)
        stages = convnext_shapes(arch, paradigm, spatial_granularity)
        out_indices = (out_indices,) if isinstance(out_indices, int) else out_indices
        if isinstance(out_indices, (list, tuple)):
            out_indices = [i + len(depths) if i in range(-len(depths), 0) else i
                           for i in out_indices]
        super().__init__(out_indices, len(depths), frozen_stages, False, execution, init_cfg or [
            dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0),
            dict(type='Constant', layer='LayerNorm', val=1, bias=0)])
        check_fraction('drop_path_rate', drop_path_rate, high=0.99)
        check_fraction('layer_scale_init_value', layer_scale_init_value, high=1e6)
        self.arch, self.paradigm = arch, paradigm
        self.spatial_granularity = spatial_granularity
        self.in_channels = check_positive_int('in_channels', in_channels)
        self.gap_before_final_norm = gap_before_final_norm
        last = max(sum(depths) - 1, 1)
        drops = iter([drop_path_rate * i / last for i in range(sum(depths))])
        stem = nn.Sequential(nn.Conv2d(in_channels, channels[0], STEM_STRIDE, STEM_STRIDE),
                             ChannelNorm(channels[0], eps=EPS))
        self.features = nn.ModuleList([stem])
        shapes: Any
        for stage, shapes in enumerate(stages):
            if stage:
                self.features.append(Downsample(shapes[0]))
                shapes = shapes[1:]
            self.features.append(nn.Sequential(*(
                ConvNeXtBlock(shape, layer_scale_init_value, next(drops), with_cp, noise)
                for shape in shapes)))
        for index in sorted(self.out_indices):
            self.add_module(f'norm{index}', ChannelNorm(channels[index], eps=EPS))
        self._stem_built = _settings(stem)
        self._stem_fold = FoldCache()
        self.register_load_state_dict_pre_hook(_adapt_state_dict)
        self._freeze()

    def run_stem(self, x: Tensor, own: ForwardPass) -> Tensor:
        stem = self.stem_modules()[0]
        if own.masked:
            return stem(x)
        weights, reason = self._stem_fold.get(
            (stem,), self.fold_stem, self.why_stem_is_not_plain, unchanged=own.unchanged)
        reason = reason or why_no_operations(x)
        if reason is not None:
            own.note(self, 'the stem', reason)
            return stem(x)
        run = StemRun(x.contiguous(memory_format=torch.channels_last), weights)
        run_steps(run, self.stem_steps(x), own.execution.clock)
        return run.y

    def fold_stem(self, dtype: torch.dtype | None) -> dict[str, Any]:
        """The stem's weights by the parts of its steps."""
        stem: Any = self.stem_modules()[0]
        conv, norm = stem
        return fold_downsampling(conv, norm, dtype)

    def why_stem_is_not_plain(self) -> str | None:
        """Why the stem's modules must be called one by one; None: programs may read past them."""
        stem: Any = self.stem_modules()[0]
        if _settings(stem) != self._stem_built or stem[1].weight is None:
            return 'its layers are not those that it was built with'
        return why_not_plain(stem.named_modules(prefix='stem'))

    def caches(self) -> list[FoldCache]:
        found = super().caches()
        return found and [self._stem_fold, *found]

    def fuses_stem(self, x: Tensor, static: bool = False) -> bool:
        return False

    def stem_steps(self, x: Tensor, static: bool = False) -> tuple:
        return self.op_specs(tuple(x.shape[-2:])).outside_steps

    def stem_specs(self, image_size: Size) -> tuple[OpSpec, ...]:
        return convnext_stem_specs(image_size, self.in_channels,
                                   convnext_arch(self.arch)[1][0])

    def op_specs(self, image_size: Size) -> NetworkSpec:
        return convnext_spec(self.arch, image_size, self.in_channels, self.paradigm,
                             self.spatial_granularity)

    def stem_modules(self) -> Sequence[nn.Module]:
        return (self.features[0],)

    def stages(self) -> list:
        features: list[Any] = list(self.features)
        first, *others = features[1::2]
        downsampling = features[2::2]
        return [first, *(nn.ModuleList([before, *stage])
                         for before, stage in zip(downsampling, others))]

    def format_output(self, x: Tensor, index: int, image_size: Size) -> Any:
        norm = self.get_submodule(f'norm{index}')
        if self.gap_before_final_norm:
            return norm(x.mean((2, 3), keepdim=True)).flatten(1)
        return norm(x)

    def starts_fresh(self) -> set[str]:
        # Classifiers norm what the last stage gives only.
        last = self.num_stages - 1
        return super().starts_fresh() | {f'norm{index}.{name}' for index in self.out_indices
                                         for name in ('weight', 'bias') if index != last}

    def layer_groups(self) -> list[list]:
        # As mmpretrain groups the blocks of a ConvNeXt: the third stage in threes.
        groups: list[list] = []
        for index, stage in enumerate(map(list, self.stages())):
            before = stage[:1] if index else []
            blocks = stage[len(before):]
            size = 3 if index == 2 else len(blocks)
            groups += [blocks[i:i + size] for i in range(0, len(blocks), size)]
            if before:
                groups[-len(blocks) // size].insert(0, before[0])
        return groups

    def train(self, mode: bool = True):
        """Set training mode; the folded stem is made anew afterwards."""
        self._stem_fold.clear()
        return super().train(mode)


def _adapt_state_dict(net, state_dict, prefix, *_):
    """Take mmpretrain's names, and torchvision's of the last norm."""
    own = {key[len(prefix):]: state_dict.pop(key)
           for key in [k for k in state_dict if k.startswith(prefix)]}
    state_dict.update({prefix + key: value for key, value in adapt_convnext(own).items()})
