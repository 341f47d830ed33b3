"""Time deployed nets that skip beside their static nets, in every runtime.

    benchmarks/deployed.py --network resnet101 --batch 1 --json OUT
    benchmarks/deployed.py --runtime eager compile aoti onnx openvino --precision fp32 bf16 \\
        --paradigm layer spatial --batch 1 8 --json OUT --markdown TABLE

The nets of a runtime are made by the same writer, for images of one size where it can plan for
one, and run with the same threads, batch by batch in turn. Maskers are set so that each block is on
for a share of the images, or of their patches, others for each block, as trained ones decide; the
figures are means over the batches of the median of the repeats, in ms per image. `compile` has the
static net under `torch.compile` with frozen weights for exactly this size.
"""
import argparse
import copy
import itertools
import sys
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from laud_mm.deploy import CompiledBackbone, deploy, measure_scales
from laud_mm.deploy.artefact import TORCH_KINDS
from laud_mm.deploy.onnx import quantise_onnx, quantise_openvino, write_onnx
from laud_mm.deploy.onnx.files import SKIP_ONE
from laud_mm.deploy.onnx.runtimes import PACKAGES, RUNTIMES, has_bf16, need
from laud_mm.export import largest_difference
from laud_mm.latency.measure import device_stamp, keep_freed_memory
from laud_mm.models.dynamic import force_rate
from laud_mm.profiling.artefacts import open_as, random_images, time_nets
from laud_mm.profiling.bench import (
    BenchSetting,
    compiled_static,
    decide_as_often,
    static_net,
)
from laud_mm.profiling.calibrate import DTYPES
from laud_mm.utils.files import write_json
from laud_mm.utils.tables import markdown_table, text_table

EAGER = 'eager'
# What each runtime computes in; others are left out.
PRECISIONS = dict(eager=('fp32', 'bf16'), compile=('fp32', 'bf16', 'int8'),
                  aoti=('fp32', 'bf16', 'int8'), onnx=('fp32', 'int8'),
                  openvino=('fp32', 'bf16', 'int8'))
COLUMNS = ('network', 'paradigm', 'size', 'batch', 'precision', 'runtime', 'rate', 'static_ms',
           'skipping_ms', 'ratio', 'all_on_ratio', 'ratio_to_eager', 'ratio_to_fastest_static')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--network', nargs='+', default=['resnet101'])
    parser.add_argument('--width', type=int, help='base channels of a ResNet, instead of 64')
    parser.add_argument('--paradigm', nargs='+', choices=('layer', 'spatial'), default=['layer'])
    parser.add_argument('--rate', type=float, default=0.5, help='between 0 and 1')
    parser.add_argument('--batch', nargs='+', type=int, default=[1])
    parser.add_argument('--batches', type=int, default=8, help='different ones that are run')
    parser.add_argument('--size', nargs='+', type=parse_size, default=[(224, 224)],
                        metavar='HxW', help='such as 224x224 800x1216')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--warmup', type=int, default=1)
    parser.add_argument('--runtime', nargs='+', choices=PRECISIONS, default=['onnx', 'openvino'])
    parser.add_argument('--precision', nargs='+', choices=('fp32', 'bf16', 'int8'),
                        default=['fp32', 'bf16'])
    parser.add_argument('--apart', action='store_true', help='time one runtime after another, for '
                        'nets that do not fit into memory together')
    parser.add_argument('--json', help='write the results to this file')
    parser.add_argument('--markdown', help='write the table to this file')
    return parser.parse_args()


def parse_size(text):
    height, _, width = text.partition('x')
    return int(height), int(width)


@torch.no_grad()
def make_case(args, network, paradigm, batch, size):
    """The nets of one setting, and the images."""
    torch.manual_seed(0)
    own = {} if args.width is None else dict(base_channels=args.width)
    setting = BenchSetting(network, paradigm, args.rate, batch, image_size=size)
    net = setting.build(**own)
    images = random_images(max(batch * args.batches, 2), net.in_channels, size)
    with force_rate(net, args.rate):
        net(images)
    decide_as_often(net, images, net.record.decisions)
    all_on = copy.deepcopy(net)
    for masker in all_on.maskers():
        for part in masker.children():
            part.conv.bias[0] = 1e6
    batches = images[:batch * args.batches].split(batch)
    expected = [net(x) for x in batches]
    # Of `static_net`, which builds by the same setting.
    static = static_net(SimpleNamespace(build=partial(setting.build, **own)), net)
    return SimpleNamespace(net=net, all_on=all_on, static=static, setting=setting, batch=batch,
                           size=size, batches=batches, expected=expected, paradigm=paradigm)


def eager(case, precision):
    def run(net):
        net = copy.deepcopy(net).to(DTYPES[precision], memory_format=torch.channels_last)
        return lambda x: net(x.to(DTYPES[precision], memory_format=torch.channels_last))
    nets = {name: run(getattr(case, name)) for name in ('static', 'net', 'all_on')}
    return dict(static=nets['static'], skipping=nets['net'], all_on=nets['all_on'])


def of_torch(case, to, precision, folder):
    """Deployed nets of torch's compilers; with everything on they would be compiled anew."""
    def form(net, **more):
        own = dict(quantized=measure_scales(net, case.batches)) if precision == 'int8' else dict(
            precision=precision)
        return deploy(net, image_size=case.size, batch=case.batch, **own, **more)
    skipping = form(case.net, with_decisions=True)
    if to == 'aoti':
        nets = dict(static=form(case.static), skipping=skipping)
        return {name: open_as(made, to, Path(folder, f'{to}_{precision}_{name}'), case.size,
                              case.batch) for name, made in nets.items()}
    if precision == 'int8':
        return dict(static=CompiledBackbone(form(case.static)), skipping=CompiledBackbone(skipping))
    last = partial(torch.Tensor.to, dtype=DTYPES[precision], memory_format=torch.channels_last)
    net = copy.deepcopy(case.static).to(DTYPES[precision])
    compiled = compiled_static(SimpleNamespace(build=lambda **_: net), net, last(case.batches[0]))
    return dict(static=lambda x: compiled(last(x)),
                skipping=CompiledBackbone(skipping))


def of_runtime(case, to, precision, folder):
    """Files of onnxruntime or OpenVINO."""
    found = {}
    for name, net in (('static', case.static), ('skipping', case.net), ('all_on', case.all_on)):
        made = deploy(net, with_decisions=name == 'skipping')
        own = Path(folder, f'{to}_{precision}_{name}')
        if precision != 'int8':
            found[name] = open_as(made, to, own, case.size, case.batch, precision)
            continue
        own.mkdir()
        source, file = own / 'net.onnx', own / dict(onnx='int8.onnx', openvino='int8.xml')[to]
        write_onnx(made, source, skip=skips_by(case, to, precision))
        dict(onnx=quantise_onnx, openvino=quantise_openvino)[to](source, file, case.batches)
        found[name] = RUNTIMES[to](file, image_size=case.size)
    return found


def measure_case(args, case, runs):
    """Rows of one setting."""
    rows, times = [], {}
    for group in [[run] for run in runs] if args.apart else [runs]:
        nets = {}
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            for to, precision in group:
                made = eager(case, precision) if to == EAGER else (
                    of_torch if to in TORCH_KINDS else of_runtime)(case, to, precision, folder)
                rows.append(dict(
                    network=case.setting.network, paradigm=case.paradigm,
                    size='x'.join(map(str, case.size)), batch=case.batch, runtime=to,
                    precision=precision, **compare(case, to, precision, made['skipping'])))
                nets.update({(to, precision, name): getattr(net, 'infer', net)
                             for name, net in made.items()})
            times.update(time_nets(nets, case.batches, args.warmup, args.repeats,
                                   settle=len({to for to, _ in group}) > 1))
    ms = {key: own.ms / case.batch for key, own in times.items()}
    for row in rows:
        key = row['runtime'], row['precision']
        row.update({f'{name}_ms': ms[*key, name] for name in ('static', 'skipping', 'all_on')
                    if (*key, name) in ms})
        row['ratio'] = row['skipping_ms'] / row['static_ms']
        if 'all_on_ms' in row:
            row['all_on_ratio'] = row['all_on_ms'] / row['static_ms']
        if (EAGER, key[1], 'skipping') in ms:
            row['ratio_to_eager'] = row['skipping_ms'] / ms[EAGER, key[1], 'skipping']
        statics = {other['runtime']: ms[other['runtime'], key[1], 'static'] for other in rows
                   if other['precision'] == key[1]}
        row['fastest_static'] = min(statics, key=statics.get)
        row['ratio_to_fastest_static'] = row['skipping_ms'] / min(statics.values())
    return rows


def skips_by(case, to, precision):
    """How a file of a runtime skips; quantisers need all samples."""
    if case.batch > 1:
        return 'gather'
    return 'slice' if precision == 'int8' else SKIP_ONE[to]


def compare(case, to, precision, net):
    """What a net decides, and how far it is from the eager one."""
    rates, differences = [], []
    for x, maps in zip(case.batches, case.expected):
        found = net(x)
        if to != EAGER:
            found, decisions = found
            rates += [mask.float().mean() for mask in decisions.values()]
        differences.append(largest_difference([y.float() for y in found], maps))
    difference = float(np.max(differences))
    if precision == 'fp32' and not difference <= 1e-4:
        raise RuntimeError(f'{to} must give what the skipping network gives, got a difference '
                           f'of {difference:.1e}')
    return dict(rate=float(np.mean(rates)) if rates else None, largest_difference=difference,
                skips_by=skips_by(case, to, precision) if to in PACKAGES else None)


def main():
    args = parse_args()
    keep_freed_memory()
    rows, versions = [], {}
    try:
        for to in args.runtime:
            if to in PACKAGES:
                (module,) = need(PACKAGES[to])
                versions[module.__name__] = module.__version__
        if 'openvino' in args.runtime and 'int8' in args.precision:
            need('nncf')
        runs = [(to, precision) for precision in args.precision for to in args.runtime
                if precision in PRECISIONS[to]
                and ((to, precision) != ('openvino', 'bf16') or has_bf16())]
        for setting in itertools.product(args.network, args.paradigm, args.batch, args.size):
            rows += measure_case(args, make_case(args, *setting), runs)
            print(text_table(rows[-len(runs):], COLUMNS), flush=True)
    except (ValueError, RuntimeError) as error:
        sys.exit(f'error: {error}')
    if args.json:
        write_json(dict(stamp=dict(device_stamp('cpu'), **versions), width=args.width,
                        batches=args.batches, repeats=args.repeats, results=rows), args.json)
    if args.markdown:
        Path(args.markdown).write_text(markdown_table(
            COLUMNS, [[row.get(column) for column in COLUMNS] for row in rows]) + '\n')


if __name__ == '__main__':
    main()
