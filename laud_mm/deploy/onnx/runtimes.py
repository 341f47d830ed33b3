"""Files of ONNX and OpenVINO as functions of images, on the CPU."""
from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from laud_mm.specs.arguments import check_choice

INSTALL = 'pip install laud-mm[deploy]'
PACKAGES = dict(onnx='onnxruntime', openvino='openvino')


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


class RuntimeNet:
    """Base: a file in a runtime.

    Attributes:
        names (list[str]): Of its outputs.
    """
    precisions: tuple[str, ...] = ('fp32',)
    names: list[str]

    def infer(self, x: Tensor) -> None:
        """Run (N, C, H, W) float32 images, which are shared, not copied; what is timed."""
        raise NotImplementedError

    def outputs(self) -> list[Tensor]:
        """What the last run gave, copied."""
        raise NotImplementedError

    def __call__(self, x: Tensor) -> Any:
        """As of a `DeployedBackbone`: (N, C, H, W) float32 images to maps, and decisions."""
        self.infer(x)
        return _named(self.names, self.outputs())


class OnnxruntimeNet(RuntimeNet):
    """A file of ONNX in onnxruntime.

    Args:
        path (str | Path): The file.
        threads (int, optional): Within an operation. Default: torch's.
        image_size (tuple[int, int], optional): Height and width of all images, which are then
            planned for; default: any.
        precision (str): 'fp32'.
        spinning (str): What its threads do while they wait: 'run' spins during a run and sleeps
            after it, so that others are not slowed; 'always' is the runtime's default, 'never'
            sleeps.

    Raises:
        RuntimeError: If onnxruntime is missing.
    """

    def __init__(self, path: str | Path, threads: int | None = None,
                 image_size: tuple[int, int] | None = None, precision: str = 'fp32',
                 spinning: str = 'run'):
        check_choice('precision', precision, self.precisions)
        check_choice('spinning', spinning, ('run', 'always', 'never'))
        (onnxruntime,) = need('onnxruntime')
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        options.inter_op_num_threads, options.log_severity_level = 1, 3
        if spinning == 'run':
            options.add_session_config_entry('session.force_spinning_stop', '1')
        if spinning == 'never':
            options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        for name, size in zip(('height', 'width'), image_size or ()):
            options.add_free_dimension_override_by_name(name, size)
        self.session = onnxruntime.InferenceSession(str(path), options,
                                                    providers=['CPUExecutionProvider'])
        self.names = [output.name for output in self.session.get_outputs()]
        self._input = self.session.get_inputs()[0].name
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy

    def infer(self, x: Tensor) -> None:
        # Values of the runtime, because `run` copies what it gives.
        images = self._value(x.contiguous().numpy())
        self._found = self.session.run_with_ort_values(self.names, {self._input: images})

    def outputs(self) -> list[Tensor]:
        return [torch.from_numpy(y.numpy().copy()) for y in self._found]


class OpenvinoNet(RuntimeNet):
    """A file of OpenVINO, or of ONNX, in OpenVINO, for the lowest latency of one request.

    Args:
        path (str | Path): The file.
        threads (int, optional): Default: torch's.
        image_size (tuple[int, int], optional): Height and width of all images, which are then
            planned for; default: any.
        precision (str): 'fp32', or 'bf16', which it may then compute in.

    Raises:
        RuntimeError: If OpenVINO is missing.
    """
    precisions = ('fp32', 'bf16')

    def __init__(self, path: str | Path, threads: int | None = None,
                 image_size: tuple[int, int] | None = None, precision: str = 'fp32'):
        check_choice('precision', precision, self.precisions)
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
        self._images = x.contiguous()
        self.request.set_input_tensor(self._tensor(self._images.numpy(), shared_memory=True))
        self.request.infer(share_outputs=True)

    def outputs(self) -> list[Tensor]:
        return [torch.from_numpy(self.request.get_output_tensor(i).data.copy())
                for i in range(len(self.names))]


RUNTIMES: dict[str, Any] = dict(onnx=OnnxruntimeNet, openvino=OpenvinoNet)


def has_bf16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU."""
    (openvino,) = need('openvino')
    return 'BF16' in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')


def _named(names: Iterable[str], found: Iterable[Tensor]) -> Any:
    """Maps, and decisions where there are any, in the order of the file."""
    pairs = list(zip(names, found))
    maps = tuple(y for name, y in pairs if name.startswith('stage_'))
    decisions = {name: y.bool() for name, y in pairs if not name.startswith('stage_')}
    return (maps, decisions) if decisions else maps
