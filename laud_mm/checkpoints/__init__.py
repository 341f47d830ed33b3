"""Reading, converting and resuming checkpoints."""
from .convert import SOURCES, convert_file, convert_laudnet
from .safe import CheckpointError, allow_runner_types, find_resumable, load_state_dict
from .transformer import convert_adavit, convert_mmcls_t2t_vit, convert_t2t_vit

__all__ = ['SOURCES', 'CheckpointError', 'allow_runner_types', 'convert_adavit', 'convert_file',
           'convert_laudnet', 'convert_mmcls_t2t_vit', 'convert_t2t_vit', 'find_resumable',
           'load_state_dict']
