"""Programs of a transformer block: its steps, and how much work rates make.

Samples that a branch runs on and that keep the same heads share a pass: their active tokens,
one after another, are the rows of the linear layers. Attention alone pads the rows of every
sample to the longest. How many rows there are must be known beforehand, which a GPU would
have to be waited for: there everything is computed, and what is off is masked.
"""
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from .opspec import Rates
from .program import WHOLE, Case, Loop, Program, around
from .steps import Step, Work

ATTENTION, MLP = 'attention', 'mlp'  # the loops, in the order of a decision's branches


@dataclass(frozen=True)
class TransformerRoute:
    """One way to compute a transformer block.

    Attributes:
        compute (str): 'dense': all tokens and heads; 'listed': those that are on.
        masks (tuple[str, ...]): Dense only: masks of the decision that are multiplied in.
    """
    compute: str
    masks: tuple[str, ...] = ()


STATIC = TransformerRoute('dense')


def routes(case: Case) -> tuple[TransformerRoute, ...]:
    """Routes that can run a case, the default first."""
    if not case.shape.paradigms:
        return (STATIC,)
    return TransformerRoute('listed'), TransformerRoute('dense', case.shape.masks)


def transformer_program(case: Case, route: TransformerRoute | None = None) -> Program:
    """The steps of a case on a route, by default the default one."""
    return _program(case, route or routes(case)[0])


@lru_cache(maxsize=512)  # blocks and images share shapes and sizes
def _program(case, route):
    shape = case.shape
    ops = {op.name.lstrip('.'): op for op in shape.op_specs(case.in_size)}
    paradigms = shape.paradigms if route != STATIC else ()
    deciding = [Step('block', listed=route != STATIC)]
    if 'token' in paradigms:
        deciding += [Step('norm_map', 'norm1', ops['norm1']),
                     Step('token_masker', 'token_masker', ops['norm1'])]
    deciding += [Step('class_masker', f'{paradigm}_masker', ops[f'{paradigm}_masker'])
                 for paradigm in ('head', 'layer') if paradigm in paradigms]
    computing: list[Step | Loop] = []
    listed = route.compute == 'listed'
    if listed:
        if not case.owns_input and not case.gradients:
            computing.append(Step('copy_map', 'identity', ops['attn.add']))
        computing.append(Step('list_tokens', 'list', ops['norm1'], units=case.in_size[0]))
    computing += [Loop(ATTENTION, _attention(shape, ops, 'token' in paradigms, route.masks)),
                  Loop(MLP, _mlp(shape, ops, route.masks))]
    waits = listed and case.device == 'cuda' and not case.gradients
    return Program(route, tuple(deciding), tuple(computing), 0.0 if waits else 1.0)


def _attention(shape, ops, normed, masks):
    """The attention branch; norm1 may have run already, for the tokens to decide by."""
    add, heads = ops['attn.add'], dict(group_size=shape.head_dims)
    norm = () if normed else (Step('norm_rows', 'norm1', ops['norm1']),)
    return (Step('gather_tokens', 'attn.gather', add, when='listed'), *norm,
            Step('linear', 'attn.qkv', ops['attn.qkv'], narrow='out', when='some_on', **heads),
            Step('attention', 'attn.mix', ops['attn.mix'], when='some_on',
                 listed='tokens' in masks, **heads),
            *_mask_heads('attn', add, masks),
            Step('linear', 'attn.proj', ops['attn.proj'], narrow='in', **heads),
            *_put('attn', add, masks))


def _mlp(shape, ops, masks):
    """The MLP branch."""
    add, heads = ops['mlp.add'], dict(group_size=shape.head_dims)
    return (Step('gather_tokens', 'mlp.gather', add, when='listed'),
            Step('norm_rows', 'norm2', ops['norm2']),
            Step('pick_heads', 'mlp.pick', ops['norm2'], when='picked', **heads),
            *_mask_heads('mlp', add, masks),
            Step('linear', 'mlp.fc1', ops['mlp.fc1'], narrow='in', **heads),
            Step('gelu', 'mlp.activation', ops['mlp.activation']),
            Step('linear', 'mlp.fc2', ops['mlp.fc2']), *_put('mlp', add, masks))


def _mask_heads(branch, op, masks):
    return (Step('mask_heads', f'{branch}.mask', op),) if 'heads' in masks else ()


def _put(branch, op, masks):
    keep = (Step('mask_tokens', f'{branch}.keep', op),) \
        if {'tokens', 'branches'} & set(masks) else ()
    return (*keep, Step('add_tokens', f'{branch}.add', op, when='everything'),
            Step('scatter_tokens', f'{branch}.add', op, when='listed'))


def expected_work(case: Case, route: TransformerRoute, rates: Rates | None) -> Mapping[str, tuple]:
    """Work to expect at activation rates.

    Args:
        case (Case): The block's case.
        route (TransformerRoute): How it is computed.
        rates (Rates | None): Scalars; one of 1 counts like one just below it. None: everything
            is known to be on.

    Returns:
        dict[str, tuple[Work, ...]]: As `Program.calls` takes it.
    """
    certain = rates is None or route.compute == 'dense'
    rates = Rates() if certain or rates is None else rates
    head, heads = float(rates.head), case.shape.num_heads
    masked = 'tokens' in route.masks
    splits = 'head' in case.shape.paradigms and not certain
    work: dict[str, tuple] = {WHOLE: (Work(case.batch),)}
    for loop, branch in ((ATTENTION, rates.attn), (MLP, rates.mlp)):
        runs = float(branch)
        if splits:  # every sample keeps other heads
            passes = [(1, runs * case.batch)]
        else:
            passes = around(runs * case.batch)
        work[loop] = tuple(
            replace(_pass(case, samples, float(rates.token), certain, masked), heads=heads * head,
                    times=share, some_on=float(head > 0), picked=float(splits))
            for samples, share in passes if samples)
    return work


def _pass(case, samples, token, certain, masked):
    tokens = case.in_size[0]
    return Work(samples, rows=samples * tokens * token, longest=tokens * token,
                everything=float(certain), listed=float(not certain),
                padded=float(masked or samples > 1 and 'token' in case.shape.paradigms
                             and not certain))
