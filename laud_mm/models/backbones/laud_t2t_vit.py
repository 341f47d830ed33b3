"""LAUD-T2T-ViT: a T2T-ViT whose blocks decide per image what to compute."""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laud_mm.framework import DropPath, ModuleList
from laud_mm.models.dynamic import ForwardPass, TransformerDecision, run_steps
from laud_mm.models.dynamic.transformer import (
    TokensRun,
    TransformerMasker,
    TransformerRun,
    run_masked,
)
from laud_mm.models.dynamic.work import transformer_work
from laud_mm.registry import MODELS
from laud_mm.specs import (
    NetworkSpec,
    OpSpec,
    Size,
    t2t_stem_specs,
    t2t_vit_shapes,
    t2t_vit_spec,
    token_grid,
)
from laud_mm.specs.arguments import Paradigm, check_choice, check_fraction, check_positive_int
from laud_mm.weights.transformer import adapt_mmpretrain

from .base import LAUDBackbone, check_unused
from .block import DynamicBlock
from .tokens_to_token import Attention, Mlp, TokensToToken

OUT_TYPES = ('cls_token', 'featmap', 'avg_featmap', 'raw')


class TransformerBlock(DynamicBlock):
    """A transformer block (norms first) that computes what its masker decides.

    Args:
        shape (TransformerShape): Geometry and paradigms.
        qkv_bias (bool): Whether queries, keys and values have a bias.
        drop_rate (float): Dropout of the linear layers' outputs.
        attn_drop_rate (float): Dropout of the attention weights.
        drop_path_rate (float): Share of samples of which a branch is dropped in training.
        with_cp (bool): Recompute activations in the backward pass.
        noise (bool): Whether the masker samples in training.
    """

    def __init__(self, shape, qkv_bias=False, drop_rate=0., attn_drop_rate=0., drop_path_rate=0.,
                 with_cp=False, noise=True, init_cfg=None):
        super().__init__(shape, with_cp, init_cfg)
        self.norm1 = nn.LayerNorm(shape.embed_dims)
        self.attn = Attention(shape.embed_dims, shape.embed_dims, shape.num_heads, qkv_bias,
                              attn_drop_rate, drop_rate)
        self.norm2 = nn.LayerNorm(shape.embed_dims)
        self.mlp = Mlp(shape.embed_dims, shape.feedforward_channels, drop_rate)
        self.drop_path = DropPath(drop_path_rate)
        self.masker = TransformerMasker(shape, noise) if shape.paradigms else None

    def decide(self, x):
        # Tokens are decided from norm1, which then need not run again.
        normed = self.norm1(x) if 'token' in self.shape.paradigms else None
        return self.masker(x, normed), normed

    def run_masked(self, x, decision, normed=None):
        return run_masked(self, x, normed, decision)

    def start(self, x, static, weights):
        return TransformerRun(self, x)

    def exact_work(self, case, route, decision):
        return transformer_work(case, route, decision)

    def static_decision(self):
        return TransformerDecision()

    def in_size(self, x):
        return (x.shape[1], 1)


@MODELS.register_module()
class LAUDT2TViT(LAUDBackbone):
    """T2T-ViT with token, head and layer skipping (LAUDNet, section 3; AdaViT's rules).

    The class token decides heads and branches of every block but the first,
    each patch token decides about itself; the class token itself always stays.
    State dicts of mmpretrain's `T2T_ViT` load as they are where
    `t2t_type='transformer'`, and give its numbers (see `adapt_mmpretrain`);
    maskers add `encoder.N.masker.*`.

    Args:
        arch (str | dict): 't2t_vit_14', 't2t_vit_19', 't2t_vit_24', or a dict of
            `embed_dims`, `num_layers`, `num_heads` and `feedforward_channels`.
        img_size (int | tuple[int, int]): Height and width of the image for
            which the position embedding is made; it is resized for others.
        in_channels (int): Channels of the images.
        token_dim (int): Channels inside the tokens-to-token module.
        t2t_type (str): Layers of that module: 'performer', or 'transformer' (T2T-ViT-t).
        out_indices (int | Sequence[int]): Blocks whose outputs are returned; -1 is the last,
            whose output is normed.
        out_type (str): What is returned: 'cls_token' (N, C), 'featmap' (N, C, H', W') of
            the patch tokens, 'avg_featmap' (N, C), their mean, or 'raw' (N, T, C), all tokens.
        frozen_stages (int): The tokens-to-token module (0) and blocks up to this one are
            frozen, with the last block the last norm; -1: none. Their maskers train
            unless a checkpoint brought their weights.
        qkv_bias (bool): Whether queries, keys and values of the blocks have a bias.
        drop_rate (float): Dropout after the position embedding and of the blocks' layers.
        attn_drop_rate (float): Dropout of the attention weights.
        drop_path_rate (float): Stochastic depth of the last block; rises from 0 linearly.
        with_cp (bool): Recompute block activations in the backward pass.
        paradigm (str | None | Collection): What is skipped: 'token', 'head', 'layer', a tuple
            or set of several, or None (static); a list: what each block skips.
        noise (bool): Gumbel noise in training.
        execution (str): 'auto', 'masked' or 'skipping', see `LAUDBackbone`.
        init_cfg (dict | list[dict], optional): mmengine initialisation.
        **unused: As of `LAUDResNet`.

    Raises:
        ValueError: For an argument out of its range, with the field's name.

    Examples:
        >>> import torch
        >>> from laud_mm.models.backbones import LAUDT2TViT
        >>> net = LAUDT2TViT('t2t_vit_14', paradigm=('token', 'head', 'layer')).eval()
        >>> [tuple(y.shape) for y in net(torch.rand(1, 3, 224, 224))]
        [(1, 384)]
    """

    def __init__(self, arch: str | dict, img_size: int = 224, in_channels: int = 3,
                 token_dim: int = 64, t2t_type: str = 'performer',
                 out_indices: int | Sequence[int] = -1, out_type: str = 'cls_token',
                 frozen_stages: int = -1, qkv_bias: bool = False, drop_rate: float = 0.,
                 attn_drop_rate: float = 0., drop_path_rate: float = 0., with_cp: bool = False,
                 paradigm: Paradigm = 'layer', noise: bool = True,
                 execution: str = 'auto', init_cfg: dict | list[dict] | None = None,
                 **unused: Any):
        init_cfg = check_unused(type(self).__name__, unused, init_cfg)
        shapes = t2t_vit_shapes(arch, paradigm)
        depth, dims = len(shapes), shapes[0].embed_dims
        out_indices = (out_indices,) if isinstance(out_indices, int) else out_indices
        if isinstance(out_indices, (list, tuple)):
            out_indices = [i + depth if i in range(-depth, 0) else i for i in out_indices]
        super().__init__(out_indices, depth, frozen_stages, False, execution, init_cfg or [
            dict(type='TruncNormal', layer='Linear', std=0.02, bias=0),
            dict(type='Constant', layer='LayerNorm', val=1, bias=0)])
        self.arch, self.paradigm = arch, paradigm
        self.in_channels = check_positive_int('in_channels', in_channels)
        self.token_dim = check_positive_int('token_dim', token_dim)
        self.img_size = check_image_size(img_size)
        self.out_type = check_choice('out_type', out_type, OUT_TYPES)
        for field, rate in (('drop_rate', drop_rate), ('attn_drop_rate', attn_drop_rate),
                            ('drop_path_rate', drop_path_rate)):
            check_fraction(field, rate)

        self.tokens_to_token = TokensToToken(in_channels, token_dim, dims, t2t_type)
        self.t2t_type = t2t_type
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, 1, dims), std=0.02))
        rows, columns = token_grid(self.img_size)
        self.register_buffer('pos_embed', sinusoids(rows * columns + 1, dims))
        self.drop_after_pos = nn.Dropout(drop_rate)
        self.encoder = ModuleList(
            TransformerBlock(shape, qkv_bias, drop_rate, attn_drop_rate,
                             drop_path_rate * i / max(depth - 1, 1), with_cp, noise)
            for i, shape in enumerate(shapes))
        for i, block in enumerate(self.encoder):
            block.owns_input = i - 1 not in self.out_indices
        self.norm = nn.LayerNorm(dims)
        self.register_load_state_dict_pre_hook(_adapt_state_dict)
        self._freeze()

    def run_stem(self, x: Tensor, own: ForwardPass) -> Tensor:
        if own.masked:
            return self.embed(x)
        run = TokensRun(self, x)
        run_steps(run, self.op_specs(tuple(x.shape[-2:])).outside_steps[:1], own.execution.clock)
        return run.out

    def embed(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to tokens with their positions, the class token first."""
        grid = token_grid(x.shape[-2:])
        x = self.tokens_to_token(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        return self.drop_after_pos(
            x + resize_positions(self.pos_embed, token_grid(self.img_size), grid))

    def stem_specs(self, image_size: Size) -> tuple[OpSpec, ...]:
        return t2t_stem_specs(image_size, self.in_channels, self.token_dim,
                              self.encoder[0].shape.embed_dims, self.t2t_type)

    def op_specs(self, image_size: Size) -> NetworkSpec:
        return t2t_vit_spec(self.arch, image_size, self.in_channels, self.token_dim,
                            self.paradigm, self.t2t_type)

    def stem_modules(self) -> Sequence[nn.Module]:
        return (self.tokens_to_token, self.drop_after_pos)

    def stages(self) -> list:
        return [nn.ModuleList([block]) for block in self.encoder]

    def format_output(self, x: Tensor, index: int, image_size: Size) -> Any:
        if index == self.num_stages - 1:
            x = self.norm(x)
        if self.out_type == 'cls_token':
            return x[:, 0]
        if self.out_type == 'avg_featmap':
            return x[:, 1:].mean(1)
        if self.out_type == 'featmap':
            return x[:, 1:].transpose(1, 2).unflatten(2, token_grid(image_size))
        return x

    def _freeze(self):
        super()._freeze()
        if self.frozen_stages >= 0:
            self.cls_token.requires_grad = False
        if self.frozen_stages == self.num_stages:
            self.norm.eval().requires_grad_(False)


def check_image_size(img_size):
    """(height, width) of an image, given as one or as a pair.

    Raises:
        ValueError: If it is neither, or too small for a token.
    """
    pair = tuple(img_size) if isinstance(img_size, (list, tuple)) else (img_size,) * 2
    if len(pair) != 2 or not all(isinstance(n, int) and n >= 3 for n in pair):
        raise ValueError(f'img_size must be an int >= 3 or a pair of them, got {img_size!r}')
    return pair


def sinusoids(positions, dims):
    """The position embedding of T2T-ViT: (1, positions, dims), sines and cosines in turn."""
    channels = torch.arange(dims, dtype=torch.float64)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] \
        / 10000**(2 * (channels // 2) / dims)
    return torch.where(channels % 2 == 0, angles.sin(), angles.cos()).float()[None]


def resize_positions(embedding, grid, new_grid):
    """Resize a position embedding (1, 1 + H * W, C) to another grid; the class token's stays."""
    if tuple(grid) == tuple(new_grid):
        return embedding
    patches = embedding[:, 1:].transpose(1, 2).unflatten(2, tuple(grid))
    patches = F.interpolate(patches.float(), new_grid, mode='bicubic', align_corners=False)
    return torch.cat([embedding[:, :1], patches.flatten(2).transpose(1, 2).to(embedding)], 1)


def _adapt_state_dict(net, state_dict, prefix, *_):
    """Take mmpretrain's names, and position embeddings of other image sizes (square ones)."""
    own = {key[len(prefix):]: state_dict.pop(key)
           for key in [k for k in state_dict if k.startswith(prefix)]}
    own = adapt_mmpretrain(own, net.encoder[0].shape.head_dims, net.token_dim)
    state_dict.update({prefix + key: value for key, value in own.items()})
    positions = state_dict.get(f'{prefix}pos_embed')
    if positions is not None and positions.shape[1] != net.pos_embed.shape[1]:
        side = round((positions.shape[1] - 1)**0.5)
        if side**2 == positions.shape[1] - 1:
            state_dict[f'{prefix}pos_embed'] = resize_positions(
                positions, (side, side), token_grid(net.img_size))
