"""Time quantised nets beside the fastest static int8 nets of other runtimes, in one run.

Random weights and images; half of the units of every block are on, wherever the maskers, which
run too, would have them. OpenVINO's net is quantised by NNCF, onnxruntime's to QDQ.

    benchmarks/int8.py --threads 2 --batch 8 --json OUT
"""
import argparse
import importlib
import tempfile
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
import torch

from laud_mm.deploy import deploy, measure_scales
from laud_mm.deploy.onnx import OnnxruntimeNet, OpenvinoNet, quantise_openvino
from laud_mm.export import export_onnx
from laud_mm.latency.measure import Timer, device_stamp, keep_freed_memory
from laud_mm.models.backbones import LAUDResNet
from laud_mm.models.dynamic.control import random_mask
from laud_mm.utils.files import write_json
from laud_mm.utils.tables import text_table

NETS = dict(static=dict(paradigm=None), layer=dict(paradigm='layer'),
            spatial=dict(paradigm='spatial', spatial_granularity=(8, 4, 7, 1)))


def build(depth, **kwargs):
    """A net with random weights and norms that keep its maps in range."""
    torch.manual_seed(0)
    net = LAUDResNet(depth, **kwargs).eval()
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.fill_(0.3 if name.endswith('bn3') else 1)
    return net


class Forced:
    """Runs the steps of a quantised block, with half of its units on whatever it decides."""

    def __init__(self, steps, rate):
        self.steps, self.rate, self.masks = steps, rate, {}

    def run(self, step, run):
        self.steps.run(step, run)
        if step.kind.endswith('_masker'):
            (name, mask), = run.masks.items()
            key = run.block.shape.name, tuple(mask.shape)
            if key not in self.masks:
                generator = torch.Generator().manual_seed(crc32(key[0].encode()))
                self.masks[key] = random_mask(mask, self.rate, generator)
            run.masks[name] = self.masks[key]


def quantized_net(depth, x, rate, **kwargs):
    net = build(depth, **kwargs)
    made = deploy(net, quantized=measure_scales(net, [x[:2]]), batch=len(x),
                  image_size=x.shape[-2:],
                  precision='bf16' if torch.ops.laud_mm_build.cpu_isa().endswith('bf16') else None)
    for block in made.blocks():
        block.clock = Forced(block.clock, rate)
    return made


def openvino_int8(path, x, threads):
    file = quantise_openvino(path, path.with_name('openvino_int8.xml'), [x])
    return partial(OpenvinoNet(file, threads, precision='bf16').infer, x.contiguous())


def onnxruntime_int8(path, x, threads):
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        left = [{onnx.load(str(path)).graph.input[0].name: x.numpy()}]

        def get_next(self):
            return self.left.pop() if self.left else None

    file = path.with_name('onnxruntime_int8.onnx')
    quantize_static(str(path), str(file), Reader(), per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    return partial(OnnxruntimeNet(file, threads).infer, x.contiguous())


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--depth', type=int, default=101)
    parser.add_argument('--size', type=int, nargs=2, default=(224, 224))
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--rate', type=float, default=0.5)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=30)
    parser.add_argument('--json', help='file to write')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    x = torch.randn(args.batch, 3, *args.size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        programs = {}
        for name, settings in NETS.items():
            net = quantized_net(args.depth, x, args.rate, **settings)
            programs[name] = lambda net=net: net(x)
        path = export_onnx(build(args.depth, paradigm=None), Path(folder) / 'static.onnx', x)
        versions = {}
        for runtime, make in (('openvino', openvino_int8), ('onnxruntime', onnxruntime_int8)):
            try:
                programs[f'{runtime}_int8'] = make(Path(path), x, args.threads)
            except (ImportError, RuntimeError) as error:
                print(f'{runtime} is not timed: {error}')
            else:
                versions[runtime] = importlib.import_module(runtime).__version__
        times = interleave(programs, args.repeats)
    peers = [name for name in programs if name.endswith('_int8')]
    fastest = min(peers or ['static'], key=lambda name: np.median(times[name]))
    rows = [dict(net=name, ms_per_image=float(np.median(own)) / args.batch,
                 ratio=float(np.median(np.divide(own, times[fastest]))))
            for name, own in times.items()]
    print(text_table(rows, ('net', 'ms_per_image', 'ratio')))
    if args.json:
        write_json(dict(stamp=dict(device_stamp('cpu'), precision='int8', **versions,
                                   int8_isa=torch.ops.laud_mm_build.int8_isa()),
                        network=f'resnet{args.depth}', size=list(args.size), batch=args.batch,
                        rate=args.rate, ratio_to=fastest, results=rows), args.json)


def interleave(programs, repeats, warmup=5):
    """Times in ms of programs run in turn."""
    timer, times = Timer('cpu'), {name: [] for name in programs}
    for i in range(warmup + repeats):
        for name, run in programs.items():
            before = timer.mark()
            run()
            if i >= warmup:
                times[name].append(timer.between_ms(before, timer.mark()))
    return times


if __name__ == '__main__':
    main()
