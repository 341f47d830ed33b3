"""What every LAUD backbone shares: execution, record, freezing, temperature."""
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from laud_mm import ops
from laud_mm.framework import BaseModule
from laud_mm.latency.plans import ExecutionPlan
from laud_mm.models.dynamic import (
    ActivationRecord,
    Execution,
    FoldCache,
    ForwardPass,
    MaskerSet,
    PassWatch,
    current_execution,
    executing,
    forward_pass,
)
from laud_mm.models.dynamic.plain import is_hooked
from laud_mm.specs import NetworkSpec, OpSpec, Size, Step, dense_steps
from laud_mm.specs.arguments import type_name
from laud_mm.weights import load_pretrained

from .block import DynamicBlock, match_format


class LAUDBackbone(BaseModule):
    """Base of the LAUD backbones.

    A subclass builds its stem and `num_stages` stages, calls `self._freeze()`
    last, and implements `run_stem`, `stem_specs`, `stem_modules` and `stages`.

    Args:
        out_indices (Sequence[int]): Stages whose outputs are returned.
        num_stages (int): Stages built.
        frozen_stages (int): Stem (0) and stages up to this one are frozen; -1: none.
        norm_eval (bool): Keep batch norm statistics fixed in training.
        execution (str): 'masked', 'skipping', or 'auto': masked in training,
            skipping in evaluation (the backbone's `training` flag decides), but dense
            where this is known to be faster, see `ExecutionPlan`.
        init_cfg (dict | list[dict], optional): mmengine initialisation.

    Attributes:
        record (ActivationRecord | None): What the last forward pass decided.
        plan (ExecutionPlan): Which program of a block `execution='auto'` runs in
            evaluation.
        freeze_maskers (bool | None): Whether maskers of frozen stages are
            frozen too; None: those whose weights came from a checkpoint.
    """

    def __init__(self, out_indices: Sequence[int], num_stages: int, frozen_stages: int,
                 norm_eval: bool, execution: str, init_cfg: dict | list[dict] | None):
        super().__init__(init_cfg)
        if not (isinstance(out_indices, (list, tuple)) and out_indices
                and all(i in range(num_stages) for i in out_indices)):
            raise ValueError(f'out_indices must be stage indices from 0 to {num_stages - 1}, '
                             f'got {out_indices!r}')
        if frozen_stages not in range(-1, num_stages + 1):
            raise ValueError(f'frozen_stages must be an int from -1 to {num_stages}, '
                             f'got {frozen_stages!r}')
        self.out_indices = tuple(out_indices)
        self.num_stages = num_stages
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.execution = Execution(execution).mode
        self.plan = ExecutionPlan()
        self.record: ActivationRecord | None = None
        self._watch = PassWatch()
        self.freeze_maskers = None

    def run_stem(self, x: Tensor, own: ForwardPass) -> Tensor:
        """Run the stem in a forward pass: (N, 3, H, W) to the first block's input."""
        raise NotImplementedError

    def stem_specs(self, image_size: Size) -> tuple[OpSpec, ...]:
        """Op specs of the stem for an image of (height, width)."""
        raise NotImplementedError

    def fuses_stem(self, x: Tensor, static: bool = False) -> bool:
        """Whether our kernel runs a stem's first convolution on such images.

        Args:
            x (Tensor): (N, 3, H, W) images.
            static (bool): Whether nothing is skipped; then the framework's runs.
        """
        return (ops.has_kernel(x.device, x.dtype) and not torch.is_grad_enabled()
                and not static and any(block.masker is not None for block in self.blocks()))

    def stem_steps(self, x: Tensor, static: bool = False) -> tuple[Step, ...]:
        """The steps of a convolutional stem; arguments as of `fuses_stem`."""
        return dense_steps(self.stem_specs(tuple(x.shape[-2:])), self.fuses_stem(x, static))

    def stem_modules(self) -> Sequence[nn.Module]:
        """Modules that `frozen_stages >= 0` freezes."""
        raise NotImplementedError

    def stages(self) -> list:
        """The stages in order: a list of modules, each an iterable of blocks."""
        raise NotImplementedError

    def run_stage(self, stage: Any, x: Tensor, own: ForwardPass) -> Tensor:
        """Run one of `stages` in a forward pass."""
        compiling = torch.compiler.is_compiling()
        if isinstance(stage, nn.Sequential) and not compiling:
            return stage(x)
        for block in stage:
            x = block.run(x, own) if compiling else block(x)
        return x

    def format_output(self, x: Tensor, index: int, image_size: Size) -> Any:
        """What the backbone returns for stage `index`, given what its last block wrote."""
        return x

    def keep_stages(self, count: int) -> None:
        """Drop the stages after the first `count`, for features of those."""
        dropped = {id(part) for stage in self.stages()[count:] for part in (stage, *stage)}
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if id(child) in dropped:
                    delattr(parent, name)
        self.num_stages = count
        self.out_indices = tuple(i for i in self.out_indices if i < count) or (count - 1,)
        self.frozen_stages = min(self.frozen_stages, count)

    def blocks(self) -> list:
        """All blocks in order."""
        return [block for stage in self.stages() for block in stage]

    def maskers(self) -> list[MaskerSet]:
        """The maskers of all dynamic blocks."""
        return [m for m in self.modules() if isinstance(m, MaskerSet)]

    def starts_fresh(self) -> set[str]:
        """Names of parameters that a checkpoint of the static network need not hold."""
        own = {id(p) for masker in self.maskers() for p in masker.parameters()}
        return {name for name, p in self.named_parameters() if id(p) in own}

    def set_temperature(self, temperature: float) -> None:
        """Set the Gumbel temperature of every masker."""
        for masker in self.maskers():
            masker.set_temperature(temperature)

    def op_specs(self, image_size: Size) -> NetworkSpec:
        """Describe the backbone's work on one image of (height, width): a `NetworkSpec`."""
        return NetworkSpec.chain(self.stem_specs(image_size), [b.shape for b in self.blocks()])

    def executing(self, **changes: Any) -> AbstractContextManager['LAUDBackbone']:
        """Change how this backbone runs, in this thread: fields of `Execution`."""
        return executing(self, **changes)

    def current_execution(self) -> Execution:
        """How this backbone runs now, in this thread."""
        # Plans are for inference: dense programs with masks record no gradients of these.
        plan = None if torch.is_grad_enabled() else self.plan
        own = Execution(self.execution, plan)
        # torch.compile follows no context variables; what it compiled runs one way for good.
        return own if torch.compiler.is_compiling() else current_execution(self, own)

    def as_static(self) -> AbstractContextManager['LAUDBackbone']:
        """Run as the `paradigm=None` network with the same weights: no masker, everything on."""
        return self.executing(static=True)

    def forward(self, x: Tensor, out_indices: Sequence[int] | None = None) -> tuple:
        """Compute the feature maps.

        Args:
            x (Tensor): (N, in_channels, H, W) images.
            out_indices (Sequence[int], optional): Stages whose outputs are returned, in order,
                this time; default: the backbone's.

        Returns:
            tuple[Tensor]: One output per stage in `out_indices`: an (N, C, H', W') map
            unless `format_output` says otherwise.
        """
        execution = self.current_execution()
        masked = execution.is_masked(self.training)
        image_size = tuple(x.shape[-2:])
        record = ActivationRecord(len(x), self.stem_specs(image_size), x.device,
                                  image_size=image_size, op_specs=self.op_specs)
        self.record = None  # frees the last pass's maskers' graph
        outputs, wanted = [], self.out_indices if out_indices is None else out_indices
        own = ForwardPass(execution, masked, record)
        caches = [] if masked or torch.compiler.is_compiling() else self.caches()
        own.unchanged = self._watch.is_current(caches)
        with nullcontext() if torch.compiler.is_compiling() else forward_pass(own):
            y = self.run_stem(x, own)
            if not any(is_hooked(m) for root in self.stem_modules() for m in root.modules()):
                own.unseen = y
            for index, stage in enumerate(self.stages()):
                y = self.run_stage(stage, y, own)
                if isinstance(stage, nn.Sequential) and is_hooked(stage):
                    own.unseen = own.summed = None  # others hold it, or changed it
                if index in wanted:
                    outputs.append(self.format_output(y, index, image_size))
                    own.unseen = None  # the next block must not write over it
        if not own.unchanged:
            self._watch.renew(caches)
        self.record = record
        own.warn(self)
        return tuple(match_format(y, x) for y in outputs)

    def caches(self) -> list[FoldCache]:
        """What keeps folded weights; none where code of others runs between blocks."""
        stages, blocks = self.stages(), self.blocks()
        if any(isinstance(stage, nn.Module) and is_hooked(stage) for stage in stages) \
                or not all(isinstance(block, DynamicBlock) for block in blocks):
            return []
        return [block.cache for block in blocks]

    def init_weights(self):
        """Initialise or load as `init_cfg` says, then the maskers that nothing was loaded for.

        Raises:
            CheckpointError: If a checkpoint of `init_cfg` does not fit, see `load_pretrained`.
        """
        if self.is_init:
            return
        configs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg or {}]
        pretrained = [c for c in configs if type_name(c) in ('Pretrained', 'PretrainedInit')]
        all_of_them = self.init_cfg
        self.init_cfg = [c for c in configs if c not in pretrained]
        super().init_weights()
        self.init_cfg = all_of_them
        for config in pretrained:  # our loader: mmengine's passes over what does not fit
            load_pretrained(self, **{k: v for k, v in config.items() if k != 'type'})
        for masker in self.maskers():
            masker.reset_parameters()
        self._freeze()
        self.is_init = True

    def train(self, mode: bool = True):
        """Set training mode; frozen stages and, with `norm_eval`, norms stay in evaluation."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze(self):
        if self.frozen_stages < 0:
            return
        frozen = self.stages()[:self.frozen_stages]
        maskers = [b.masker for stage in frozen for b in stage if b.masker is not None]
        deciding = {p for masker in maskers for p in masker.parameters()}
        for module in (*self.stem_modules(), *frozen):
            module.eval()
            for parameter in module.parameters():
                if parameter not in deciding:
                    parameter.requires_grad = False
        for masker in maskers:
            freeze = self._is_frozen(masker)
            if not freeze:
                masker.train(self.training)
            if freeze != masker.frozen:  # else they are as the user wants them
                masker.frozen = freeze
                masker.requires_grad_(not freeze)

    def _is_frozen(self, masker):
        return masker.loaded if self.freeze_maskers is None else self.freeze_maskers

    def layer_groups(self) -> list[list]:
        """Blocks that layer-wise learning rates treat as one layer, from first to last."""
        return [[block] for block in self.blocks()]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Where a parameter stands, for layer-wise decay of the learning rate.

        Args:
            param_name (str): Its name in the whole model.
            prefix (str): What names of the backbone's parameters start with.

        Returns:
            tuple[int, int]: Its layer, 0 for the stem, the last for what follows the blocks;
            and how many layers there are.
        """
        groups = self.layer_groups()
        after = len(groups) + 1
        if not param_name.startswith(prefix):
            return after, after + 1
        names = {module: name for name, module in self.named_modules()}
        own = param_name[len(prefix):]
        for depth, group in enumerate(groups, 1):
            if any(own.startswith(f'{names[block]}.') for block in group):
                return depth, after + 1
        stem = [f'{names[module]}.' for module in self.stem_modules()]
        root = own.rpartition('.')[0] == ''  # a parameter of the backbone itself
        return (0 if root or own.startswith(tuple(stem)) else after), after + 1

    def maskers_are_frozen(self) -> bool:
        """Whether the maskers of frozen stages are frozen with them."""
        frozen = [b for stage in self.stages()[:max(self.frozen_stages, 0)] for b in stage]
        maskers = [b.masker for b in frozen if b.masker is not None]
        return bool(maskers) and all(self._is_frozen(m) for m in maskers)


def check_norm_cfg(norm_cfg):
    """Check that a norm folds into a convolution.

    Raises:
        ValueError: If `norm_cfg` is not a batch norm.
    """
    allowed = ('BN', 'BN2d', 'SyncBN', 'MMSyncBN', 'BatchNorm2d', 'SyncBatchNorm')
    if not isinstance(norm_cfg, dict) or type_name(norm_cfg) not in allowed or not (
            norm_cfg.get('affine', True) and norm_cfg.get('track_running_stats', True)):
        raise ValueError(f'norm_cfg.type must be one of {", ".join(allowed)}, affine and with '
                         f'running statistics (others do not fold), got {norm_cfg!r}')
    return norm_cfg


def check_conv_cfg(conv_cfg):
    """Check that convolutions are plain ones, which is what executors skip.

    Raises:
        ValueError: If `conv_cfg` asks for another kind.
    """
    allowed = ('Conv', 'Conv2d')
    if conv_cfg is not None and type_name(conv_cfg) not in allowed:
        raise ValueError(f'conv_cfg must be None or have type {" or ".join(allowed)}, '
                         f'got {conv_cfg!r}')
    return conv_cfg


# Arguments of the frameworks' backbones that are not supported, with what asks for nothing.
_UNUSED = dict(dcn=None, stage_with_dcn=False, plugins=None, drop_path_rate=0.0, deep_stem=False,
               avg_down=False, pretrained=None)


def check_unused(name, unused, init_cfg, own=()):
    """Take arguments of the frameworks' backbones where they ask for nothing.

    Args:
        name (str): Name of the backbone's class.
        unused (dict): Arguments that the backbone does not know.
        init_cfg (dict | list[dict] | None): Its `init_cfg`.
        own (Mapping): More such arguments, of this kind of backbone, with what they must be.

    Returns:
        dict | list[dict] | None: `init_cfg`; where `pretrained` names a checkpoint, the config
        that loads it, as in mmdet.

    Raises:
        ValueError: If an argument asks for something.
        TypeError: If no backbone has such an argument.
    """
    nothing = {**_UNUSED, **dict(own)}
    for field, value in unused.items():
        if field not in nothing:
            raise TypeError(f'{name} got an unexpected keyword argument {field!r}')
        if field == 'pretrained' and isinstance(value, str) and init_cfg is None:
            init_cfg = dict(type='Pretrained', checkpoint=value)
            continue
        each = value if isinstance(value, (list, tuple)) else [value]
        if any(one != nothing[field] for one in each):
            allowed = ', or a checkpoint without init_cfg,' * (field == 'pretrained')
            raise ValueError(f'{field} must be {nothing[field]!r}{allowed} for {name}, '
                             f'got {value!r}')
    return init_cfg
