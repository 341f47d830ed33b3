"""Deployed backbones in onnxruntime and OpenVINO, where blocks skip samples."""
from .files import write_onnx
from .runtimes import OnnxruntimeNet, OpenvinoNet

__all__ = ['OnnxruntimeNet', 'OpenvinoNet', 'write_onnx']
