"""A third family of networks, registered from this one file: plain residual blocks.

y = relu(x + conv2(relu(conv1(x)))), both 3x3, skipped per sample. Kept samples are gathered,
convolved by the framework and put back: two kinds of step of its own beside known ones.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import Sequential
from torch import nn

from laud_mm.latency.kernel_table import launches
from laud_mm.latency.kernels import Launch, Stream
from laud_mm.models.backbones.base import LAUDBackbone
from laud_mm.models.backbones.block import DynamicBlock
from laud_mm.models.dynamic import (
    Decision,
    MaskerSet,
    SpatialMasker,
    StemRun,
    fold_conv_norm,
    run_steps,
    runs,
)
from laud_mm.models.dynamic.plain import plain
from laud_mm.registry import MODELS
from laud_mm.specs import (
    STEP_KINDS,
    Case,
    Family,
    NetworkSpec,
    OpSpec,
    Program,
    Rates,
    Step,
    StepKind,
    Work,
    register_family,
)
from laud_mm.specs.arguments import paradigm_set
from laud_mm.specs.program import WHOLE, around

PARADIGMS = ('layer',)


@dataclass(frozen=True)
class PlainRoute:
    compute: str  # 'dense' or 'gathered'


@dataclass(frozen=True)
class PlainShape:
    name: str
    stage: int
    channels: int
    paradigms: tuple[str, ...] = ()

    static_route = PlainRoute('dense')

    @property
    def paradigm(self):
        return '+'.join(self.paradigms) or None

    def out_size(self, in_size):
        return in_size

    def expected_rates(self, rate, in_size=None):
        return Rates(layer=rate) if self.paradigms else Rates()

    def op_specs(self, in_size):
        def op(name, kind='conv', taps=3, **kwargs):
            return OpSpec(f'{self.name}.{name}', kind, self.channels, self.channels, in_size,
                          in_size, kernel_size=taps, scaled_by=('layer',), **kwargs)
        ops = (op('conv1'), op('conv2'), op('add', 'add', 1))
        if not self.paradigms:
            return ops
        return (*ops, OpSpec(f'{self.name}.layer_masker', 'linear', self.channels, 2, (1, 1),
                             (1, 1), dynamic=True))

    def routes(self, case):
        return (PlainRoute('gathered'),) if self.paradigms else (self.static_route,)

    def program(self, case, route=None):
        route = route or self.routes(case)[0]
        conv1, conv2, add, *masker = self.op_specs(case.in_size)
        deciding = (Step('block'),)
        body = (Step('conv3x3', 'conv1', conv1), Step('relu', 'conv1.relu', conv1),
                Step('conv3x3', 'conv2', conv2))
        if route == self.static_route:
            return Program(route, deciding, (*body, Step('add_relu', 'add', add)))
        return Program(route, (*deciding, Step('layer_masker', op=conv1)), (
            Step('gather_kept', 'gather', add), *body, Step('put_kept', 'put', add)))

    def expected_work(self, case, route, rates: Rates | None) -> Mapping[str, tuple]:
        if rates is None or route == self.static_route:
            return {WHOLE: (Work(case.batch, computing=case.batch),)}
        return {WHOLE: tuple(Work(case.batch, times=share, computing=kept)
                             for kept, share in around(float(rates.layer) * case.batch))}


for kind in ('gather_kept', 'put_kept'):
    STEP_KINDS[kind] = StepKind(('rows', 'channels'), lambda s, w: (
        w.computing * s.out_rows, s.op.out_channels))


@launches('gather_kept', 'put_kept')
def _copies(step, work, batch):
    rows = work.computing * step.out_rows / batch
    return [Launch('', Stream(2 * rows * step.op.out_channels))]


class PlainRun:
    def __init__(self, block, x, weights):
        self.block, self.weights, self.x = block, weights, x
        self.identity = self.out = self.y = x
        self.masks, self.decision, self.kept = {}, Decision(), None

    def decided(self):
        return Decision(**self.masks)


@runs('gather_kept')
def _gather(run, step):
    run.kept = run.decision.layer[:, 0].nonzero()[:, 0]
    run.x = run.x[run.kept]


@runs('put_kept')
def _put(run, step):
    run.out = run.identity.clone()
    run.out[run.kept] = F.relu(run.identity[run.kept] + run.y)


@plain
class PlainMasker(MaskerSet):
    def __init__(self, channels):
        super().__init__()
        self.layer = SpatialMasker(channels, None)


@dataclass(frozen=True)
class PlainWeights:
    convs: dict
    maskers: dict

    def named(self, part):
        return self.convs[part]


class PlainBlock(DynamicBlock):
    folds = True

    def __init__(self, shape: PlainShape):
        super().__init__(shape)
        for i in (1, 2):
            self.add_module(f'conv{i}', nn.Conv2d(shape.channels, shape.channels, 3, padding=1,
                                                  bias=False))
            self.add_module(f'bn{i}', nn.BatchNorm2d(shape.channels))
        self.masker = PlainMasker(shape.channels) if shape.paradigms else None

    def decide(self, x):
        return (Decision(layer=self.masker.layer(x).flatten(1)),)

    def run_masked(self, x, decision):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if decision.layer is not None:
            y = y * decision.layer.to(y.dtype)[:, :, None, None]
        return F.relu(x + y)

    def start(self, x, static, weights):
        return PlainRun(self, x.contiguous(memory_format=torch.channels_last), weights)

    def fold(self, dtype):
        return PlainWeights(
            dict(conv1=fold_conv_norm(self.conv1, self.bn1, dtype),
                 conv2=fold_conv_norm(self.conv2, self.bn2, dtype)),
            dict(layer=self.masker.layer.difference()) if self.masker else {})

    def exact_work(self, case: Case, route: Any, decision: Any):
        kept = case.batch if decision.layer is None else int(decision.layer.sum())
        samples = case.batch if route == self.shape.static_route else kept
        whole = (Work(samples, computing=kept),)
        return {WHOLE: whole}

    def static_decision(self):
        return Decision()


def plain_shapes(depth, channels, paradigm):
    paradigms = paradigm_set(paradigm, PARADIGMS)
    return [PlainShape(f'layer1.{i}', 0, channels, paradigms) for i in range(depth)]


def plain_stem(image_size, in_channels, channels):
    half = tuple(-(-n // 2) for n in image_size)
    return (OpSpec('stem', 'conv', in_channels, channels, tuple(image_size), half, 3, 2),)


def plain_spec(image_size=(224, 224), depth=4, channels=32, in_channels=3, paradigm=None):
    return NetworkSpec.chain(plain_stem(image_size, in_channels, channels),
                             plain_shapes(depth, channels, paradigm))


@MODELS.register_module()
class LAUDPlainNet(LAUDBackbone):
    def __init__(self, depth=4, channels=32, in_channels=3, paradigm='layer', execution='auto',
                 init_cfg=None):
        super().__init__((0,), 1, -1, False, execution, init_cfg)
        self.channels, self.in_channels = channels, in_channels
        self.stem = nn.Conv2d(in_channels, channels, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.layer1 = Sequential(*map(PlainBlock, plain_shapes(depth, channels, paradigm)))

    def run_stem(self, x, own):
        if own.masked:
            return F.relu(self.stem_norm(self.stem(x)))
        run = StemRun(x, dict(stem=fold_conv_norm(self.stem, self.stem_norm)))
        run_steps(run, self.stem_steps(x, own.execution.static), own.execution.clock)
        return run.y

    def stem_specs(self, image_size):
        return plain_stem(image_size, self.in_channels, self.channels)

    def stem_modules(self):
        return self.stem, self.stem_norm

    def stages(self):
        return [self.layer1]


def infer_plain(weights):
    if 'stem_norm.weight' not in weights:
        return None
    depth = len({key.split('.')[1] for key in weights if key.startswith('layer1.')})
    channels, in_channels = weights['stem.weight'].shape[:2]
    return dict(depth=depth, channels=channels, in_channels=in_channels,
                paradigm='layer' if 'layer1.0.masker.layer.conv.weight' in weights else None)


FAMILY = register_family(Family(
    'LAUDPlainNet', 'LAUD-PlainNet', {'plain4': dict(depth=4), 'plain8': dict(depth=8)},
    plain_spec, ('depth', 'channels', 'in_channels'), PARADIGMS, infer=infer_plain))
