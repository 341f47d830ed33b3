"""Deployed backbones in onnxruntime and OpenVINO, where blocks skip samples."""
from .files import write_onnx
from .runtimes import OnnxruntimeNet, OpenvinoNet

__all__ = ['OnnxruntimeNet', 'OpenvinoNet', 'quantise_onnx', 'quantise_openvino', 'write_onnx']


def __getattr__(name):
    if name in ('quantise_onnx', 'quantise_openvino'):  # they need onnx
        from . import quantise
        return getattr(quantise, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
