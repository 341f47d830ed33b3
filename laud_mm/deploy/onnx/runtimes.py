"""Files of ONNX and OpenVINO as functions of images, on the CPU."""
from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laud_mm.specs.arguments import check_choice

INSTALL = 'pip install laud-mm[deploy]'


def need(*names: str) -> list[Any]:
    """Import packages of the extra `deploy`.

    Raises:
        RuntimeError: If one is missing, with what installs it.
    """
    found = []
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            raise RuntimeError(f'{name} is missing ({error}): {INSTALL}') from error
    return found


class OnnxruntimeNet:
    """A file of ONNX in onnxruntime.

    Args:
        path (str | Path): The file.
        threads (int, optional): Default: torch's.
        image_size (tuple[int, int], optional): Height and width of all images, which are then
            planned for; default: any.

    Raises:
        RuntimeError: If onnxruntime is missing.
    """

    def __init__(self, path: str | Path, threads: int | None = None,
                 image_size: tuple[int, int] | None = None):
        (onnxruntime,) = need('onnxruntime')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads, options.log_severity_level = 1, 3
        # Its threads sleep between runs, as others' do.
        options.add_session_config_entry('session.force_spinning_stop', '1')
        for name, size in zip(('height', 'width'), image_size or ()):
            options.add_free_dimension_override_by_name(name, size)
        self.session = onnxruntime.InferenceSession(str(path), options,
                                                    providers=['CPUExecutionProvider'])
        self.names = [output.name for output in self.session.get_outputs()]

    def infer(self, x: Tensor) -> None:
        """Run (N, C, H, W) float32 images; what is timed."""
        self.found = self.session.run(None, {'images': x.numpy()})

    def __call__(self, x: Tensor) -> Any:
        """As of a `DeployedBackbone`: (N, C, H, W) float32 images to maps, and decisions."""
        self.infer(x)
        return _named(self.names, self.found)


class OpenvinoNet:
    """A file of OpenVINO, or of ONNX, in OpenVINO.

    Args:
        path (str | Path): The file.
        threads (int, optional): Default: torch's.
        image_size (tuple[int, int], optional): Height and width of all images, which are then
            planned for; default: any.
        precision (str): 'fp32', or 'bf16', which it may then compute in.

    Raises:
        RuntimeError: If OpenVINO is missing.
    """

    def __init__(self, path: str | Path, threads: int | None = None,
                 image_size: tuple[int, int] | None = None, precision: str = 'fp32'):
        check_choice('precision', precision, ('fp32', 'bf16'))
        (openvino,) = need('openvino')
        core = openvino.Core()
        model = core.read_model(str(path))
        if image_size is not None:
            batch, channels, _, _ = model.inputs[0].get_partial_shape()
            model.reshape({0: openvino.PartialShape([batch, channels, *image_size])})
        # Left alone it would choose bfloat16 where the CPU has it.
        self.request = core.compile_model(model, 'CPU', dict(
            PERFORMANCE_HINT='LATENCY', NUM_STREAMS='1',
            INFERENCE_NUM_THREADS=str(threads or torch.get_num_threads()),
            INFERENCE_PRECISION_HINT=dict(fp32='f32', bf16='bf16')[precision],
        )).create_infer_request()
        self.names = [output.get_any_name() for output in model.outputs]
        self._tensor = openvino.Tensor

    def infer(self, x: Tensor) -> None:
        """Run (N, C, H, W) float32 images; what is timed."""
        self.request.infer({0: self._tensor(x.numpy(), shared_memory=True)})

    def __call__(self, x: Tensor) -> Any:
        """As of a `DeployedBackbone`: (N, C, H, W) float32 images to maps, and decisions."""
        self.infer(x)
        # Copied: the next run writes over them.
        return _named(self.names, [self.request.get_output_tensor(i).data.copy()
                                   for i in range(len(self.names))])


RUNTIMES = dict(onnx=OnnxruntimeNet, openvino=OpenvinoNet)


def _named(names: Iterable[str], arrays: Iterable[np.ndarray]) -> Any:
    """Maps, and decisions where there are any, in the order of the file."""
    found = {name: torch.from_numpy(array) for name, array in zip(names, arrays)}
    maps = tuple(y for name, y in found.items() if name.startswith('stage_'))
    decisions = {name: y.bool() for name, y in found.items() if not name.startswith('stage_')}
    return (maps, decisions) if decisions else maps
