"""The static net in other runtimes: whom a skipping net has to beat."""
import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from laud_mm.export import export_onnx, largest_difference
from laud_mm.specs.arguments import check_choice

INSTALL = 'pip install laud-mm[peers]'
# Largest differences to the static net in torch, of each output's largest value.
TOLERANCES = dict(fp32=1e-3, bf16=0.1)
# What precisions of `run_precision` are called here; others have no peer of their own.
PRECISION_OF = dict(fp32='fp32', bf16='bf16', amp_bf16='bf16')


@dataclass(frozen=True)
class Peers:
    """What other runtimes made of a static net.

    Attributes:
        programs (dict[str, Callable]): By '<runtime>_<precision>', a function without arguments
            that runs the net on the images and returns its outputs as tensors of their own or
            shared memory.
        versions (dict[str, str]): By runtime.
        missing (list[str]): What could not be timed, each with its reason.
    """
    programs: dict
    versions: dict
    missing: list


class OnnxruntimeNet:
    """A file of ONNX in onnxruntime, on the CPU, in float32.

    Args:
        path (str | Path): The file.
        images (Tensor): (N, C, H, W) float32 on the CPU; shared, not copied.
        threads (int): Threads within an operation.
        spinning (str): What its threads do while they wait: 'run' spins during a run and sleeps
            after it, so that the others are timed alone; 'always' is the runtime's default,
            'never' sleeps.
    """
    precisions = ('fp32',)

    def __init__(self, path, images, precision='fp32', threads=1, spinning='run'):
        import onnxruntime
        check_choice('precision', precision, self.precisions)
        check_choice('spinning', spinning, ('run', 'always', 'never'))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        if spinning == 'run':
            options.add_session_config_entry('session.force_spinning_stop', '1')
        if spinning == 'never':
            options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        self.session = onnxruntime.InferenceSession(str(path), options,
                                                    providers=['CPUExecutionProvider'])
        self.images = images.contiguous()  # kept: the binding points to its memory
        self.binding = self.session.io_binding()
        self.binding.bind_cpu_input(self.session.get_inputs()[0].name, self.images.numpy())
        for output in self.session.get_outputs():
            self.binding.bind_output(output.name)

    def __call__(self):
        self.session.run_with_iobinding(self.binding)

    def outputs(self):
        """What the last run gave: a list of tensors."""
        return [torch.from_numpy(y) for y in self.binding.copy_outputs_to_cpu()]


class OpenvinoNet:
    """A file of ONNX in OpenVINO, on the CPU, for the lowest latency of one request.

    Args:
        path (str | Path): The file.
        images (Tensor): (N, C, H, W) float32 on the CPU; shared, not copied.
        precision (str): 'fp32' or 'bf16': what it may compute in.
        threads (int): Threads.
    """
    precisions = ('fp32', 'bf16')

    def __init__(self, path, images, precision='fp32', threads=1):
        import openvino
        check_choice('precision', precision, self.precisions)
        # Left alone it would choose bfloat16 where the CPU has it.
        hint = dict(fp32='f32', bf16='bf16')[precision]
        net = openvino.Core().compile_model(str(path), 'CPU', dict(
            PERFORMANCE_HINT='LATENCY', NUM_STREAMS='1', INFERENCE_NUM_THREADS=str(threads),
            INFERENCE_PRECISION_HINT=hint))
        self.images = images.contiguous()
        self.request = net.create_infer_request()
        self.request.set_input_tensor(openvino.Tensor(self.images.numpy(), shared_memory=True))
        self.count = len(net.outputs)

    def __call__(self):
        self.request.infer()

    def outputs(self):
        """What the last run gave: a list of tensors."""
        return [torch.from_numpy(self.request.get_output_tensor(i).data.copy())
                for i in range(self.count)]


RUNTIMES = dict(onnxruntime=OnnxruntimeNet, openvino=OpenvinoNet)


def static_peers(static, x):
    """The static net in every runtime that is here, in each of its precisions.

    bfloat16 is left out where the CPU has no instructions for it.

    Args:
        static (LAUDBackbone): With `paradigm=None`, in evaluation.
        x (Tensor): (N, C, H, W) images; the runtimes have them as float32 in their own layout,
            (N, C, H, W) one after another.

    Returns:
        Peers: Each was compared with the net in torch first.

    Raises:
        RuntimeError: If a runtime gives other numbers.
    """
    programs, versions, missing = {}, {}, []
    found = {}
    for name in (*RUNTIMES, 'onnx', 'onnxscript'):
        try:
            found[name] = importlib.import_module(name)
        except ImportError:
            missing.append(f'{name}: not installed ({INSTALL})')
    versions = {name: found[name].__version__ for name in RUNTIMES if name in found}
    if not {'onnx', 'onnxscript'} <= set(found):
        return Peers({}, versions, missing)
    static, images = static.float(), x.detach().float().contiguous()
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        expected = static(images)
    with tempfile.TemporaryDirectory() as folder, \
            torch.autocast(x.device.type, enabled=False):
        path = export_onnx(static, Path(folder) / 'static.onnx', images)
        for name in versions:
            for precision in RUNTIMES[name].precisions:
                if precision == 'bf16' and not _has_bf16(found[name]):
                    missing.append(f'{name}_bf16: this CPU has no bfloat16 instructions')
                    continue
                net = RUNTIMES[name](path, images, precision, torch.get_num_threads())
                net()
                difference = largest_difference(net.outputs(), expected)
                if not difference <= TOLERANCES[precision]:
                    raise RuntimeError(
                        f'the static net in {name} {precision} must give the numbers that it '
                        f'gives in torch, got a difference of {difference:.1e}')
                programs[f'{name}_{precision}'] = net
    return Peers(programs, versions, missing)


def _has_bf16(openvino):
    return 'BF16' in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
