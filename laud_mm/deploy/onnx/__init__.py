"""Deployed backbones in onnxruntime and OpenVINO, where blocks skip samples."""
from .files import write_onnx
from .runtimes import OnnxruntimeNet, OpenvinoNet

__all__ = ['OnnxruntimeNet', 'OpenvinoNet', 'quantise_onnx', 'write_onnx']


def __getattr__(name):
    if name == 'quantise_onnx':  # it needs onnx
        from .quantise import quantise_onnx
        return quantise_onnx
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
