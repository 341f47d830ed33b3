"""Latency: predicted from op specs, and measured. Importing it needs no torch."""
from .analytic import AnalyticPredictor
from .hardware import Hardware, known_devices, load_hardware
from .prediction import BlockLatency, LatencyReport, OpLatency

__all__ = ['AnalyticPredictor', 'BlockLatency', 'Hardware', 'LatencyReport', 'OpLatency',
           'known_devices', 'load_hardware']
