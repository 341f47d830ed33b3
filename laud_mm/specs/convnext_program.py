"""Programs of a ConvNeXt block: its routes, their steps, and how much work rates make.

The depthwise convolution reads the block's input, which is all there: nothing has to be computed
around a listed patch. The norm's weights are part of the first pointwise layer, the layer scale
of the second one. No GPU kernels list patches of such blocks yet: there everything is computed,
and what is off is masked.
"""
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from .opspec import Rates
from .program import WHOLE, Case, Program, around
from .steps import Step, Work


@dataclass(frozen=True)
class ConvNeXtRoute:
    """One way to compute a ConvNeXt block.

    Attributes:
        compute (str): 'dense': everything, by the framework's operations; 'listed': listed
            patches, or samples, which are patches as large as the map; 'none': nothing, of a
            block that is off for good.
        masks (tuple[str, ...]): Dense only: masks of the decision that are multiplied in.
    """
    compute: str
    masks: tuple[str, ...] = ()


STATIC = ConvNeXtRoute('dense')
REMOVED = ConvNeXtRoute('none')


def routes(case: Case) -> tuple[ConvNeXtRoute, ...]:
    """Routes that can run a case, the default first."""
    if not case.shape.paradigms:
        return (STATIC,)
    return ConvNeXtRoute('listed'), ConvNeXtRoute('dense', case.shape.masks)


def convnext_program(case: Case, route: ConvNeXtRoute | None = None) -> Program:
    """The steps of a case on a route, by default the default one."""
    return _program(case, route or routes(case)[0])


@lru_cache(maxsize=512)  # blocks and images share shapes and sizes
def _program(case, route):
    if route == REMOVED:
        return Program(route, (Step('block'),))
    ops = {op.name.lstrip('.'): op for op in case.shape.op_specs(case.in_size)}
    deciding = [Step('block', listed=route != STATIC)]
    if route != STATIC:
        deciding += _maskers(case, ops['depthwise'])
    if route.compute == 'dense':
        return Program(route, tuple(deciding), _dense(ops, route.masks))
    waits = case.device != 'cpu' and not case.gradients
    return Program(route, tuple(deciding), tuple(_listed(case, ops)), 0.0 if waits else 1.0)


def _maskers(case, op):
    shape = case.shape
    if shape.layer_skipping:
        yield Step('layer_masker', op=op)
    if shape.spatial_skipping:
        yield Step('spatial_masker', op=op, units=math.prod(shape.grid_size(case.in_size)),
                   window=shape.spatial_granularity)


def _dense(ops, masks):
    return (Step('depthwise_conv', 'depthwise', ops['depthwise']),
            Step('channel_norm', 'norm', ops['norm']),
            Step('pointwise', 'pointwise1', ops['pointwise1']),
            Step('gelu', 'activation', ops['activation']),
            Step('pointwise', 'pointwise2', ops['pointwise2']),
            Step('add_masked_map' if masks else 'add_map', 'add', ops['add']))


def _listed(case, ops):
    side = case.shape.patch_side(case.in_size)
    if case.gradients or not case.owns_input:
        yield Step('copy_map', 'identity', ops['add'])
    yield Step('list_patches', op=ops['add'], units=_grid(case))
    yield Step('depthwise_norm_rows', 'depthwise', ops['depthwise'], patch=side)
    yield Step('mlp_rows_add', 'pointwise', ops['pointwise1'], patch=side)


def _grid(case):
    side = case.shape.patch_side(case.in_size)
    return math.prod(-(-n // side) for n in case.in_size)


def listed_work(case: Case, route: ConvNeXtRoute, kept: float, patches: float) -> Work:
    """The work of a batch of which samples are kept, with listed patches."""
    everything = case.batch * math.prod(case.in_size)
    return Work(case.batch, rows=everything if route.compute == 'dense' else 0.0,
                patches=patches, computing=min(kept, patches))


def expected_work(case: Case, route: ConvNeXtRoute, rates: Rates | None) -> Mapping[str, tuple]:
    """Work to expect at activation rates, see `bottleneck_program.expected_work`."""
    rates = rates or Rates()
    if route.compute == 'dense':
        return {WHOLE: (listed_work(case, route, case.batch, case.batch * _grid(case)),)}
    return {WHOLE: tuple(
        replace(listed_work(case, route, kept, kept * _grid(case) * float(rates.patch)),
                times=share) for kept, share in around(float(rates.layer) * case.batch))}
