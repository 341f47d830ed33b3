"""T2T-ViT as a table: its transformer blocks and the op specs of the whole net."""
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .arguments import Paradigm, check_choice, check_positive_int, paradigm_set, paradigms_per_stage
from .network import NetworkSpec
from .opspec import OpSpec, Rates, Size
from .program import Case, Program
from .steps import Step
from .transformer_program import (
    STATIC,
    TransformerRoute,
    expected_work,
    routes,
    transformer_program,
)

T2T_VIT_ARCHS = {
    't2t_vit_14': dict(embed_dims=384, num_layers=14, num_heads=6, feedforward_channels=1152),
    't2t_vit_19': dict(embed_dims=448, num_layers=19, num_heads=7, feedforward_channels=1344),
    't2t_vit_24': dict(embed_dims=512, num_layers=24, num_heads=8, feedforward_channels=1536),
}
_ARCH_KEYS = tuple(T2T_VIT_ARCHS['t2t_vit_14'])
TRANSFORMER_PARADIGMS = ('token', 'head', 'layer')
# The mask of a decision that each paradigm makes.
MASKS = dict(token='tokens', head='heads', layer='branches')
T2T_TYPES = ('performer', 'transformer')
SOFT_SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))  # window, stride and padding


def t2t_vit_arch(arch):
    """Settings of an architecture: a key of `T2T_VIT_ARCHS`, or a dict of the same form.

    Raises:
        ValueError: If the name is unknown, or a key or a value of the dict is wrong.
    """
    if isinstance(arch, str):
        arch = T2T_VIT_ARCHS[check_choice('arch', arch, T2T_VIT_ARCHS)]
    if not isinstance(arch, dict) or set(arch) != set(_ARCH_KEYS):
        raise ValueError(f'arch must be one of {", ".join(map(repr, T2T_VIT_ARCHS))}, or a dict '
                         f'with {", ".join(_ARCH_KEYS)}, got {arch!r}')
    for key in _ARCH_KEYS:
        check_positive_int(f'arch.{key}', arch[key])
    if arch['embed_dims'] % arch['num_heads']:
        raise ValueError(f'arch.num_heads must divide arch.embed_dims, got {arch["num_heads"]} '
                         f'for {arch["embed_dims"]}')
    return dict(arch)


def token_grid(image_size: Size) -> Size:
    """Rows and columns of patch tokens that an image of (height, width) becomes."""
    return _grids(image_size)[-1]


def _grids(size):
    """(height, width) after each soft split."""
    sizes = []
    for kernel, stride, padding in SOFT_SPLITS:
        size = tuple((n + 2 * padding - kernel) // stride + 1 for n in size)
        sizes.append(size)
    return sizes


def block_paradigms(paradigm, depth):
    """What each block skips; a list names one per block, or is an old spelling of a tuple."""
    if isinstance(paradigm, list) and len(paradigm) != depth:
        paradigm = tuple(one for one in paradigm if one is not None)
    return paradigms_per_stage(paradigm, depth, TRANSFORMER_PARADIGMS)


@dataclass(frozen=True)
class TransformerShape:
    """Everything about a transformer block that is known before its weights.

    Attributes:
        name (str): Module path inside the backbone, such as 'encoder.0'.
        stage (int): Always 0: a T2T-ViT has one stage.
        embed_dims (int): Channels of a token.
        num_heads (int): Attention heads.
        feedforward_channels (int): Hidden channels of the MLP.
        paradigms (tuple[str, ...]): What is skipped, of `TRANSFORMER_PARADIGMS`.
    """
    name: str
    stage: int
    embed_dims: int
    num_heads: int
    feedforward_channels: int
    paradigms: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, 'paradigms',
                           paradigm_set(self.paradigms, TRANSFORMER_PARADIGMS))

    @property
    def head_dims(self) -> int:
        """Channels of a head."""
        return self.embed_dims // self.num_heads

    @property
    def paradigm(self) -> str | None:
        """What is skipped, as one word; None for a static block."""
        return '+'.join(self.paradigms) or None

    @property
    def masks(self) -> tuple[str, ...]:
        """Masks of the block's `TransformerDecision`."""
        return tuple(MASKS[paradigm] for paradigm in self.paradigms)

    def out_size(self, in_size: Size) -> Size:
        """Tokens written: those read."""
        return in_size

    def expected_rates(self, rate: float, in_size: Size = (197, 1)) -> Rates:
        """Activation rates for a share of units on; the class token always stays.

        Args:
            rate (float): Share of heads, of the two branches, or of patch tokens on.
            in_size (tuple[int, int]): (tokens, 1), the class token among them.
        """
        rates, tokens = {}, in_size[0]
        if 'token' in self.paradigms:
            rates['token'] = (1 + rate * (tokens - 1)) / tokens
        if 'head' in self.paradigms:
            rates['head'] = rate
        if 'layer' in self.paradigms:
            rates.update(attn=rate, mlp=rate)
        return Rates(**rates)

    def program(self, case: Case, route: Any = None) -> Program:
        """The steps of a case of this shape, see `transformer_program`."""
        return transformer_program(case, route)

    @property
    def static_route(self) -> Any:
        """The route of the static block."""
        return STATIC

    def dense_route(self, masks: tuple[str, ...]) -> Any:
        """The route that computes everything and multiplies by some of the masks."""
        return TransformerRoute('dense', masks)

    def routes(self, case: Case) -> tuple:
        """Routes that can run a case, the default first."""
        return routes(case)

    def expected_work(self, case: Case, route: Any, rates: Rates) -> Mapping[str, tuple]:
        """Work to expect of a case at `Rates`."""
        return expected_work(case, route, rates)

    def op_specs(self, in_size: Size) -> tuple[OpSpec, ...]:
        """Describe the block's work on one image of `in_size` = (tokens, 1)."""
        tokens, _ = in_size
        dims, hidden, heads = self.embed_dims, self.feedforward_channels, self.num_heads

        def op(name, kind, cin, cout, scaled_by, size=in_size, **kwargs):
            return OpSpec(f'{self.name}.{name}', kind, cin, cout, size, size,
                          scaled_by=scaled_by, **kwargs)

        on, attn, mlp = ('attn', 'token'), ('attn', 'head', 'token'), ('mlp', 'token')
        pairs = (*attn, 'token')
        # Tokens are decided from norm1, so it always runs on all of them.
        reads_norm1 = 'token' in self.paradigms
        ops = [
            op('norm1', 'norm', dims, dims, () if reads_norm1 else ('attn',)),
            op('attn.qkv', 'linear', dims, 3 * dims, attn),
            op('attn.scores', 'matmul', dims, heads * tokens, pairs, groups=heads),
            op('attn.softmax', 'softmax', heads * tokens, heads * tokens, pairs),
            op('attn.mix', 'matmul', heads * tokens, dims, pairs, groups=heads),
            op('attn.proj', 'linear', dims, dims, attn),
            op('attn.add', 'add', dims, dims, on),
            op('norm2', 'norm', dims, dims, mlp),
            op('mlp.fc1', 'linear', dims, hidden, (*mlp, 'head')),
            op('mlp.activation', 'activation', hidden, hidden, mlp),
            op('mlp.fc2', 'linear', hidden, dims, mlp),
            op('mlp.add', 'add', dims, dims, mlp),
        ]
        deciders = dict(token=(in_size, 1), head=((1, 1), heads), layer=((1, 1), 2))
        for paradigm in self.paradigms:
            size, units = deciders[paradigm]
            ops.append(op(f'{paradigm}_masker', 'linear', dims, units, (), size, dynamic=True))
        return tuple(ops)


def t2t_vit_shapes(arch: str | dict, paradigm: Paradigm = None) -> tuple[TransformerShape, ...]:
    """List the transformer blocks of a LAUD-T2T-ViT.

    The first block decides on tokens only (AdaViT).

    Args:
        arch (str | dict): A key of `T2T_VIT_ARCHS`, or a dict of the same form.
        paradigm (str | None | Collection): 'token', 'head', 'layer', several of them or none;
            or a list with what each block skips.
    """
    own = t2t_vit_arch(arch)
    paradigms = block_paradigms(paradigm, own['num_layers'])
    paradigms[0] = tuple(p for p in paradigms[0] if p == 'token')
    return tuple(
        TransformerShape(f'encoder.{i}', 0, own['embed_dims'], own['num_heads'],
                         own['feedforward_channels'], skipped)
        for i, skipped in enumerate(paradigms))


def _performer_specs(name, tokens, in_channels, dims):
    """One Performer of the tokens-to-token module; m = dims / 2 random features."""
    size, features = (tokens, 1), dims // 2

    def op(part, kind, cin, cout, at=size):
        return OpSpec(f'{name}.{part}', kind, cin, cout, at, at)

    return [op('norm1', 'norm', in_channels, in_channels),
            op('kqv', 'linear', in_channels, 3 * dims),
            op('k_features', 'linear', dims, features),
            op('q_features', 'linear', dims, features),
            op('feature_exp', 'activation', 2 * features, 2 * features),
            op('context', 'matmul', tokens, features, at=(dims, 1)),
            op('mix', 'matmul', features, dims),
            op('proj', 'linear', dims, dims), op('norm2', 'norm', dims, dims),
            op('mlp.0', 'linear', dims, dims), op('mlp.1', 'activation', dims, dims),
            op('mlp.2', 'linear', dims, dims)]


def _token_transformer_specs(name, tokens, in_channels, dims):
    """One transformer layer of the tokens-to-token module of T2T-ViT-t: one head, MLP ratio 1."""
    size = (tokens, 1)

    def op(part, kind, cin, cout):
        return OpSpec(f'{name}.{part}', kind, cin, cout, size, size)

    return [op('norm1', 'norm', in_channels, in_channels),
            op('attn.qkv', 'linear', in_channels, 3 * dims),
            op('attn.scores', 'matmul', dims, tokens),
            op('attn.softmax', 'softmax', tokens, tokens),
            op('attn.mix', 'matmul', tokens, dims), op('attn.proj', 'linear', dims, dims),
            op('attn.add', 'add', dims, dims), op('norm2', 'norm', dims, dims),
            op('mlp.fc1', 'linear', dims, dims), op('mlp.activation', 'activation', dims, dims),
            op('mlp.fc2', 'linear', dims, dims), op('mlp.add', 'add', dims, dims)]


def t2t_stem_specs(image_size: Size, in_channels: int = 3, token_dim: int = 64,
                   embed_dims: int = 448, t2t_type: str = 'performer') -> tuple[OpSpec, ...]:
    """Op specs of the tokens-to-token module and the projection.

    Three soft splits (`SOFT_SPLITS`); after each of the first two a Performer,
    or in T2T-ViT-t a transformer layer.
    """
    layer_specs = {'performer': _performer_specs, 'transformer': _token_transformer_specs}[
        check_choice('t2t_type', t2t_type, T2T_TYPES)]
    ops, size, channels = [], tuple(image_size), in_channels
    for index, ((kernel, stride, _), out) in enumerate(zip(SOFT_SPLITS, _grids(image_size))):
        unfolded = channels * kernel**2
        ops.append(OpSpec(f'tokens_to_token.soft_split{index}', 'pool', channels, unfolded, size,
                          out, kernel_size=kernel, stride=stride))
        tokens = out[0] * out[1]
        if index < 2:
            ops += layer_specs(f'tokens_to_token.attention{index + 1}', tokens, unfolded,
                               token_dim)
        size, channels = out, token_dim
    ops.append(OpSpec('tokens_to_token.project', 'linear', unfolded, embed_dims, (tokens, 1),
                      (tokens, 1)))
    return tuple(ops)


def t2t_vit_spec(arch: str | dict, image_size: Size = (224, 224), in_channels: int = 3,
                 token_dim: int = 64, paradigm: Paradigm = None,
                 t2t_type: str = 'performer') -> NetworkSpec:
    """Op specs of a whole LAUD-T2T-ViT backbone; arguments as in `t2t_vit_shapes`."""
    shapes = t2t_vit_shapes(arch, paradigm)
    dims = shapes[0].embed_dims
    stem = t2t_stem_specs(image_size, in_channels, token_dim, dims, t2t_type)
    size = (stem[-1].out_size[0] + 1, 1)  # and the class token
    norm = OpSpec('norm', 'norm', dims, dims, size, size)
    return NetworkSpec.chain(stem, shapes, size, tail=(norm,), outside_steps=(
        Step('tokens_to_token', 'tokens_to_token', OpSpec(
            'tokens_to_token', 'linear', in_channels, dims, image_size, size)),
        Step('norm_map', 'norm', norm)))
