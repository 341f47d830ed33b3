"""Operations of dynamic execution, each with a plain-PyTorch reference."""
from .layer_skip import add_relu_samples, gather_samples
from .patches import (active_patches, gather_positions, gather_windows, patch_positions,
                      scatter_add_relu)
from .tokens import gather_tokens, scatter_add_tokens

__all__ = ['active_patches', 'add_relu_samples', 'gather_positions', 'gather_samples',
           'gather_tokens', 'gather_windows', 'patch_positions', 'scatter_add_relu',
           'scatter_add_tokens']
