"""Reading, converting and resuming checkpoints."""
from .convert import SOURCES, convert_file, convert_laudnet
from .pretrained import load_pretrained
from .safe import CheckpointError, allow_runner_types, find_resumable, load_state_dict

__all__ = ['SOURCES', 'CheckpointError', 'allow_runner_types', 'convert_file', 'convert_laudnet',
           'find_resumable', 'load_pretrained', 'load_state_dict']
