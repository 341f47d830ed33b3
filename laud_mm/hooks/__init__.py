"""Hooks: activation loss and temperature, latency report, checkpoints."""
from laud_mm.utils.stack import require_packages

require_packages('laud_mm.hooks', 'mmengine')

from .activation_hook import ActivationHook
from .checkpoint_hook import AtomicCheckpointHook
from .latency_hook import LatencyHook

__all__ = ['ActivationHook', 'AtomicCheckpointHook', 'LatencyHook']
