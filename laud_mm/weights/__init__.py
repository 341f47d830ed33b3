"""Weights in files: read safely, found again, loaded into a backbone. Models stand above it."""
from .pretrained import load_pretrained
from .safe import (
                   CheckpointError,
                   allow_runner_types,
                   find_resumable,
                   load_state_dict,
                   save_state_dict,
)

__all__ = ['CheckpointError', 'allow_runner_types', 'find_resumable', 'load_pretrained',
           'load_state_dict', 'save_state_dict']
