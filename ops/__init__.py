"""Operations of dynamic execution, each with a plain-PyTorch reference."""
from . import flops, library
from .excite import excite_patches_
from .int8 import (
                   conv1x1_add_patches_int8_,
                   conv1x1_positions_int8,
                   conv3x3_patches_int8,
                   dequantize,
                   pack_int8,
                   pack_stem_int8,
                   patch_mask_int8,
                   quantize,
                   shortcut_int8,
                   stem_int8,
)
from .library import OPERATIONS, has_dot_products, has_kernel, use_references
from .maps import average_pool, conv_map, max_pool, rectify_
from .maskers import masker_conv1x1, patch_mask, position_means, sums_mask
from .patch_conv import (
                         conv1x1_add_patches_,
                         conv1x1_positions,
                         conv1x1_shortcut,
                         conv3x3_patches,
                         pack_conv,
                         pack_winograd,
                         slice_ready,
                         sum_pieces,
)
from .patch_mlp import depthwise_norm_patches, mlp_add_patches_, pack_patchify, patchify
from .stem import pack_stem, stem_conv
from .tokens import gather_tokens, scatter_add_tokens_
from .units import WHOLE, active_patches, compact, halo_positions, patch_positions

library.load()
flops.register()

__all__ = [*OPERATIONS, 'OPERATIONS', 'WHOLE', 'active_patches', 'has_dot_products', 'has_kernel',
           'pack_patchify', 'pack_stem', 'pack_stem_int8', 'patch_positions', 'slice_ready',
           'sum_pieces', 'use_references']
