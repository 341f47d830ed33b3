"""Time a deployed net with layer skipping in onnxruntime and OpenVINO beside its static net.

    benchmarks/deployed.py --network resnet101 --batch 1 --json OUT

Both are files of the same writer for images of one size, run with the same threads, image by
image in turn. Maskers are set so that each block is on for a share of the images, others for each
block, as trained ones decide; the figures are means over the images of the median of the repeats.
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from laud_mm.deploy import deploy
from laud_mm.deploy.onnx import OnnxruntimeNet, OpenvinoNet, write_onnx
from laud_mm.deploy.onnx.files import SKIP_ONE
from laud_mm.deploy.onnx.runtimes import need
from laud_mm.export import largest_difference
from laud_mm.latency.measure import device_stamp
from laud_mm.profiling.bench import BenchSetting
from laud_mm.utils.files import write_json
from laud_mm.utils.tables import text_table

RUNS = (('onnx', 'fp32'), ('openvino', 'fp32'), ('openvino', 'bf16'))
COLUMNS = ('runtime', 'precision', 'skips_by', 'batch', 'static_ms', 'skipping_ms', 'rate',
           'ratio', 'all_on_ratio')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', default='resnet101')
    parser.add_argument('--rate', type=float, default=0.5, help='between 0 and 1')
    parser.add_argument('--batch', type=int, default=1)
    parser.add_argument('--batches', type=int, default=8, help='different ones that are run')
    parser.add_argument('--size', nargs=2, type=int, default=(224, 224), metavar=('H', 'W'))
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--runtime', choices=('onnx', 'openvino'), help='default: both')
    parser.add_argument('--json', help='write the results to this file')
    return parser.parse_args()


def make_images(count, size):
    """Smooth random images with noise, (N, 3, H, W): unlike each other."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.randn(count, 3, 4, 4, generator=generator), size, mode='bilinear')
    return smooth + 0.3 * torch.randn(count, 3, *size, generator=generator)


@torch.no_grad()
def set_maskers(net, images, rate):
    """Have each layer masker keep a share of the images, by a random direction of its inputs."""
    generator = torch.Generator().manual_seed(0)

    def set_masker(block, inputs):  # right before the block decides by it
        means, conv = inputs[0].mean((2, 3)), block.masker.layer.conv
        direction = torch.randn(means.shape[1], generator=generator)
        direction /= (means @ direction).std().clamp(min=1e-12)
        logits = (means @ direction).sort().values
        low = int(len(logits) * (1 - rate)) - 1
        conv.weight.zero_()[0, :, 0, 0] = direction
        conv.bias.zero_()[0] = -logits[[low, low + 1]].mean()
    handles = [block.register_forward_pre_hook(set_masker) for block in net.blocks()]
    net(images)
    for handle in handles:
        handle.remove()


def make_files(args, images, folder, to):
    """Write the static net, the one that skips, and that with all on; the eager outputs too."""
    torch.manual_seed(0)
    net = BenchSetting(args.network, 'layer', args.rate, 1).build()
    set_maskers(net, images, args.rate)
    static = BenchSetting(args.network, None, args.rate, 1).build()
    suffix = dict(onnx='.onnx', openvino='.xml')[to]
    paths = {name: Path(folder, name + suffix) for name in ('static', 'skipping', 'all_on')}
    skip = SKIP_ONE[to] if args.batch == 1 else 'gather'
    write_onnx(deploy(static), paths['static'], to, skip)
    made = deploy(net, with_decisions=True)
    write_onnx(made, paths['skipping'], to, skip)
    with torch.no_grad():
        expected = [net(x) for x in images.split(args.batch)]
        for masker in net.maskers():
            masker.layer.conv.bias[0] = 1e6
    write_onnx(deploy(net), paths['all_on'], to, skip)
    return paths, skip, expected


def measure(args, to, precision, paths, images, expected):
    """Time the three files in turn; a row of the table."""
    options = dict(threads=torch.get_num_threads(), image_size=tuple(args.size),
                   **dict(precision=precision) if to == 'openvino' else {})
    reader = dict(onnx=OnnxruntimeNet, openvino=OpenvinoNet)[to]
    nets = {name: reader(path, **options) for name, path in paths.items()}
    batches, rates, difference = images.split(args.batch), [], 0.0
    for x, maps in zip(batches, expected):
        found, decisions = nets['skipping'](x)
        rates += [mask.float().mean() for mask in decisions.values()]
        difference = max(difference, largest_difference(found, maps))
    if precision == 'fp32' and difference > 1e-4:
        raise RuntimeError(f'{to} must give what the skipping network gives, got a difference '
                           f'of {difference:.1e}')
    times = {name: np.zeros((args.repeats, len(batches))) for name in nets}
    for repeat in range(-1, args.repeats):  # once untimed
        for i, x in enumerate(batches):
            for name, net in nets.items():
                begin = time.perf_counter()
                net.infer(x)
                times[name][max(repeat, 0), i] = time.perf_counter() - begin
    ms = {name: float(np.median(own, 0).mean()) * 1e3 / args.batch for name, own in times.items()}
    return dict(runtime=to, precision=precision, batch=args.batch, rate=float(np.mean(rates)),
                **{f'{name}_ms': value for name, value in ms.items()},
                ratio=ms['skipping'] / ms['static'], all_on_ratio=ms['all_on'] / ms['static'],
                largest_difference=difference)


def main():
    args = parse_args()
    images = make_images(args.batch * args.batches, tuple(args.size))
    rows, versions = [], {}
    try:
        for to in [args.runtime] if args.runtime else ('onnx', 'openvino'):
            (module,) = need(dict(onnx='onnxruntime').get(to, to))
            versions[module.__name__] = module.__version__
            with tempfile.TemporaryDirectory() as folder:
                paths, skip, expected = make_files(args, images, folder, to)
                rows += [dict(measure(args, to, precision, paths, images, expected),
                              skips_by=skip)
                         for runtime, precision in RUNS if runtime == to]
    except (ValueError, RuntimeError) as error:
        sys.exit(f'error: {error}')
    print(text_table(rows, COLUMNS))
    if args.json:
        write_json(dict(stamp=dict(device_stamp('cpu'), **versions), network=args.network,
                        image_size=args.size, batches=args.batches, repeats=args.repeats,
                        results=rows), args.json)


if __name__ == '__main__':
    main()
