"""Converting checkpoints; reading and resuming them is in `laud_mm.weights`."""
from laud_mm.weights import (
                             CheckpointError,
                             allow_runner_types,
                             find_resumable,
                             load_pretrained,
                             load_state_dict,
                             save_state_dict,
)

from .convert import SOURCES, TARGETS, Conversion, convert_file, convert_laudnet
from .transformer import convert_adavit, convert_mmcls_t2t_vit, convert_t2t_vit

__all__ = ['SOURCES', 'TARGETS', 'CheckpointError', 'Conversion', 'allow_runner_types',
           'convert_adavit', 'convert_file', 'convert_laudnet', 'convert_mmcls_t2t_vit',
           'convert_t2t_vit', 'find_resumable', 'load_pretrained', 'load_state_dict',
           'save_state_dict']
