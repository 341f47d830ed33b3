"""Hooks: activation loss and temperature, latency report, checkpoints, memory format."""
from laud_mm.utils.stack import require_packages

require_packages('laud_mm.hooks', 'mmengine')

from .activation_hook import ActivationHook
from .channels_last_hook import ChannelsLastHook
from .checkpoint_hook import AtomicCheckpointHook
from .latency_hook import LatencyHook

__all__ = ['ActivationHook', 'AtomicCheckpointHook', 'ChannelsLastHook', 'LatencyHook']
