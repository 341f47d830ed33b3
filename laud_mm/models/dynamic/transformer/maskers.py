"""Maskers of a transformer block: tokens, heads and branches (method, section 6)."""
import torch
from torch import nn

from laud_mm.specs import TransformerShape

from ..decision import TransformerDecision
from ..maskers import Masker, MaskerSet, gumbel_decide
from ..plain import plain
from ..precision import no_autocast, own_dtype

TOKEN_THRESHOLD = 0.6  # AdaViT's; heads and branches are on above 0.5


@plain
class SigmoidMasker(Masker):
    """A linear layer to one logit per unit; on where its sigmoid exceeds a threshold.

    Args:
        in_channels (int): Channels of a token.
        units (int): Units decided per token.
        threshold (float): Probability above which a unit is on.
        noise (bool): See `gumbel_decide`.
    """

    def __init__(self, in_channels, units, threshold=0.5, noise=True):
        super().__init__(noise, temperature=5.0)
        self.threshold = threshold
        self.fc = nn.Linear(in_channels, units)
        self.reset_parameters()

    def reset_parameters(self):
        """Fresh weights: nearly every unit starts on."""
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.constant_(self.fc.bias, 5.0)

    def logits(self, x):
        return self.fc(x.to(own_dtype(self.fc)))

    def sample(self, x):
        return self.with_logits(x)[1]

    def decide(self, x):
        return self.with_logits(x)[1]

    def with_logits(self, x):
        """The logits, in the masker's own precision, and the mask that they make."""
        with no_autocast(x.device):
            logits = self.logits(x)
        if self.training:
            return logits, gumbel_decide(logits, torch.zeros_like(logits), self.temperature,
                                         self.noise, self.threshold)
        return logits, ~(torch.sigmoid(logits) <= self.threshold)  # NaN is on


@plain
class TransformerMasker(MaskerSet):
    """All maskers of one transformer block: makes its `TransformerDecision`.

    Args:
        shape (TransformerShape): Geometry and paradigms of the block.
        noise (bool): See `gumbel_decide`.
    """

    def __init__(self, shape: TransformerShape, noise=True):
        super().__init__()
        if 'token' in shape.paradigms:
            self.token = SigmoidMasker(shape.embed_dims, 1, TOKEN_THRESHOLD, noise)
        if 'head' in shape.paradigms:
            self.head = SigmoidMasker(shape.embed_dims, shape.num_heads, noise=noise)
        if 'layer' in shape.paradigms:
            self.layer = SigmoidMasker(shape.embed_dims, 2, noise=noise)

    def forward(self, x, normed=None):
        """Decide from the block's input.

        Args:
            x (Tensor): (N, T, C), the class token first: it decides heads and branches.
            normed (Tensor, optional): (N, T, C), norm1 of `x`: its patch tokens
                decide about themselves; needed for token skipping.
        """
        masks = {}
        if hasattr(self, 'token'):
            masks['tokens'] = self.token(normed[:, 1:])[..., 0]
        for name, _ in self.named_children():
            if name != 'token':
                masks.update(self.by_class_token(name, x))
        return TransformerDecision(**masks)

    def by_class_token(self, name, x):
        """What the 'head' or 'layer' masker decides from x (N, T, C): logits and mask."""
        names = dict(head=('head_logits', 'heads'), layer=('branch_logits', 'branches'))[name]
        return dict(zip(names, getattr(self, name).with_logits(x[:, 0])))
