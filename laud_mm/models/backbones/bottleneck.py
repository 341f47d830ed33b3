"""What LAUD backbones of bottleneck blocks share: the block, the stem, the initialisation."""
import torch
from torch import nn

from laud_mm.framework import build_conv_layer, build_norm_layer
from laud_mm.latency.plans import load_plan
from laud_mm.models.dynamic import (
    BlockMasker,
    BottleneckRun,
    Decision,
    FoldCache,
    FoldedBottleneck,
    SqueezeExcitation,
    StemRun,
    fold_conv_norm,
    run_masked,
    run_steps,
)
from laud_mm.models.dynamic.plain import (
    op_settings,
    settings,
    why_no_operations,
    why_not_plain,
)
from laud_mm.models.dynamic.work import bottleneck_work

from .base import LAUDBackbone
from .block import DynamicBlock


class DynamicBottleneck(DynamicBlock):
    """A bottleneck block that computes what its masker decides.

    In evaluation, unless gradients are recorded, it reads folded weights that it keeps.

    A subclass gives the modules their names, in `name_modules`, and hands them
    to the executors, in `layers`, `shortcut` and `excitation`.

    Args:
        shape (BottleneckShape): Geometry and paradigm.
        conv_cfg (dict, optional): Config of the convolutions.
        norm_cfg (dict): Config of the batch norms.
        with_cp (bool): Recompute activations in the backward pass.
        noise (bool): Whether the masker samples in training.
        se_pool (str): Positions that squeeze-and-excitation takes its means
            over: 'computed', or 'dense' for all, in the masked executor only.
    """

    folds = True

    def __init__(self, shape, conv_cfg=None, norm_cfg=None, with_cp=False, noise=True,
                 se_pool='computed', init_cfg=None):
        super().__init__(shape, with_cp, init_cfg)
        self.se_pool = se_pool

        def layer(cin, cout, kernel, **kwargs):
            return (build_conv_layer(conv_cfg, cin, cout, kernel, bias=False, **kwargs),
                    build_norm_layer(norm_cfg, cout)[1])

        layers = (
            layer(shape.in_channels, shape.width, 1, stride=shape.stride1),
            layer(shape.width, shape.width, 3, stride=shape.stride2, padding=shape.dilation,
                  dilation=shape.dilation, groups=shape.groups),
            layer(shape.width, shape.out_channels, 1))
        shortcut = None
        if shape.downsample:
            stride = 1 if shape.avg_down else shape.stride
            # As mmdet and timm have it, a pool also where it pools nothing.
            pool = (nn.AvgPool2d(shape.stride, ceil_mode=True, count_include_pad=False),) \
                if shape.avg_down else ()
            shortcut = nn.Sequential(*pool, *layer(shape.in_channels, shape.out_channels, 1,
                                                   stride=stride))
        self.name_modules(layers, shortcut, SqueezeExcitation(shape.width, shape.se_channels)
                          if shape.se_channels else None)
        self.masker = BlockMasker(shape, noise) if shape.paradigms else None
        self._built = self._settings()

    def name_modules(self, layers, shortcut, excitation):
        """Register the modules that `layers`, `shortcut` and `excitation` return."""
        raise NotImplementedError

    def layers(self):
        """The residual branch: three pairs of a convolution and its norm."""
        raise NotImplementedError

    def shortcut(self):
        """The shortcut: an `nn.Sequential` that ends with a convolution and its norm, or None."""
        raise NotImplementedError

    def excitation(self):
        """The `SqueezeExcitation` between the second norm and the third convolution, or None."""
        raise NotImplementedError

    def decide(self, x):
        return (self.masker(x),)

    def run_masked(self, x, decision):
        return run_masked(self, x, decision)

    def start(self, x, static, weights):
        if self.se_pool == 'dense' and self.shape.spatial_skipping and not static:
            raise RuntimeError("se_pool='dense' reads positions that spatial skipping does not "
                               "compute: use execution='masked'")
        return BottleneckRun(self, x.contiguous(memory_format=torch.channels_last), weights)

    def exact_work(self, case, route, decision):
        return bottleneck_work(case, route, decision)

    def static_decision(self):
        return Decision()

    def _pairs(self):
        """Convolutions with their norms: the residual branch's, and the shortcut's."""
        shortcut = self.shortcut()
        return [*self.layers(), *([] if shortcut is None else [shortcut[-2:]])]

    def _settings(self):
        """Settings of the convolutions, and of what comes before the shortcut's."""
        return [settings(module) for module in (*(conv for conv, _ in self._pairs()),
                                                *(self.shortcut() or ())[:-2])]

    def why_not_plain(self):
        if self._settings() != self._built:
            return 'its convolutions are not those that it was built with'
        return super().why_not_plain()

    def fold(self, dtype):
        """The block's weights with the norms folded in: a `FoldedBottleneck`."""
        excitation = self.excitation()
        return FoldedBottleneck(
            *(fold_conv_norm(conv, norm, dtype) for conv, norm in self._pairs()),
            excitation=excitation and excitation.excitation(dtype),
            maskers={} if self.masker is None else self.masker.differences())


class BottleneckBackbone(LAUDBackbone):
    """A convolutional stem and stages of `DynamicBottleneck`s.

    A subclass builds the stem and the stages, the latter from `make_blocks`, and implements
    `stem_layers` and `call_stem`.

    Args:
        out_indices (Sequence[int]): Stages whose outputs are returned.
        num_stages (int): Stages built.
        frozen_stages (int): Stem (0) and stages up to this one are frozen; -1: none.
        norm_eval (bool): Keep batch norm statistics fixed in training.
        execution (str): See `LAUDBackbone`.
        zero_init_residual (bool): Start the last norm of each block at zero.
        init_cfg (dict | list[dict], optional): mmengine initialisation.
        plan (str, optional): A file of `tools/latency.py plan` (or `calibrate`), for
            execution='auto': says which blocks to compute densely, see `ExecutionPlan`.
    """

    def __init__(self, out_indices, num_stages, frozen_stages, norm_eval, execution,
                 zero_init_residual, init_cfg, plan=None):
        if plan is not None and execution != 'auto':
            raise ValueError(f"plan needs execution='auto', got {execution!r}")
        super().__init__(out_indices, num_stages, frozen_stages, norm_eval, execution,
                         init_cfg or [dict(type='Kaiming', layer='Conv2d'),
                                      dict(type='Constant', val=1, layer='_BatchNorm')])
        self.zero_init_residual = zero_init_residual and init_cfg is None
        if plan is not None:
            self.plan = load_plan(plan)
        self._stem_fold = FoldCache()

    def stem_layers(self):
        """The stem's convolutions with their norms: pairs."""
        raise NotImplementedError

    def call_stem(self, x):
        """Call the stem's modules one by one."""
        raise NotImplementedError

    def run_stem(self, x, own):
        if own.masked:
            return self.call_stem(x)
        convs, reason = self._stem_fold.get(self.stem_modules(), self.fold_stem,
                                            self.why_stem_is_not_plain,
                                            unchanged=own.unchanged)
        reason = reason or why_no_operations(x)
        if reason is not None:
            own.note(self, 'the stem', reason)
            return self.call_stem(x)
        specs = self.stem_specs(tuple(x.shape[-2:]))
        run = StemRun(x, dict(zip((op.name for op in specs if op.kind == 'conv'), convs)))
        run_steps(run, self.stem_steps(x, own.execution.static), own.execution.clock)
        return run.y

    def caches(self):
        found = super().caches()
        return found and [self._stem_fold, *found]

    def fold_stem(self, dtype):
        return [fold_conv_norm(conv, norm, dtype) for conv, norm in self.stem_layers()]

    def why_stem_is_not_plain(self):
        modules = [conv for conv, _ in self.stem_layers()]
        modules += [m for m in self.stem_modules() if isinstance(m, nn.MaxPool2d)]
        if list(map(settings, modules)) != list(map(op_settings, self.stem_specs((1, 1)))):
            return 'its convolutions are not those that it was built with'
        return why_not_plain((name or type(module).__name__, module) for root in self.stem_modules()
                             for name, module in root.named_modules())

    def layer_groups(self):
        # As mmpretrain groups the blocks of a ResNet.
        first, *middle, last = [list(stage) for stage in self.stages()] \
            if self.num_stages > 1 else [[], self.blocks()]
        groups = [first] if first else []
        for stage in middle:
            size = -(-len(stage) // 2) if len(stage) <= 8 else 3 if len(stage) <= 24 else 4
            groups += [stage[i:i + size] for i in range(0, len(stage), size)]
        return [*groups, last]

    def init_weights(self):
        if self.is_init:
            return
        super().init_weights()
        if self.zero_init_residual:
            for block in self.blocks():
                for parameter in block.layers()[-1][1].parameters():
                    nn.init.zeros_(parameter)

    def train(self, mode=True):
        """Set training mode; the folded stem is made anew afterwards."""
        self._stem_fold.clear()
        return super().train(mode)


def make_blocks(block_type, shapes, *args, **kwargs):
    """Build the blocks of one stage: `block_type(shape, *args, **kwargs)` of each shape."""
    blocks = [block_type(shape, *args, **kwargs) for shape in shapes]
    for block in blocks[1:]:  # the first one's input is the stage before's output
        block.owns_input = True
    return blocks


def masker_settings(masker):
    """Complete the `masker` argument of a backbone.

    Raises:
        ValueError: For an unknown key or a bad reduction.
    """
    settings = dict(channel='mlp', reduction=16, noise=True)
    unknown = set(masker or {}) - set(settings)
    if unknown:
        raise ValueError(f'masker must have keys among {", ".join(settings)}, '
                         f'got {", ".join(sorted(unknown))}')
    settings.update(masker or {})
    if not isinstance(settings['reduction'], int) or settings['reduction'] < 1:
        raise ValueError(f'masker.reduction must be a positive int, got {settings["reduction"]!r}')
    return settings
