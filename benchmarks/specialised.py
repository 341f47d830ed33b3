"""Evaluate and time the specialised backbone of a trained detector beside the whole one.

    make demo
    benchmarks/specialised.py configs/faster_rcnn_laud_demo.py work_dirs/demo/epoch_6.pth \\
        --json OUT

The detector is evaluated on the config's test set with its backbone as it skips, deployed, and
deployed and specialised. Backbones are timed in turn on images of that set, one by one, with the
decisions that they make; figures are means over the images of the median of the repeats. The
profile is of the set itself unless `--profile` names another.
"""
import argparse
import copy
import itertools
import sys
import tempfile
from functools import partial

import torch
from mmengine.runner import Runner

from laud_mm.checkpoints import CheckpointError
from laud_mm.commands.deploy import build_backbone
from laud_mm.deploy import CompiledBackbone, UnitProfile, deploy, load_profile
from laud_mm.latency.measure import device_stamp, keep_freed_memory
from laud_mm.models.find import unwrap
from laud_mm.profiling.artefacts import time_nets
from laud_mm.profiling.bench import BenchSetting, compiled_static, static_net
from laud_mm.specs import find_backbone_config
from laud_mm.utils.files import write_json
from laud_mm.utils.run import load_config
from laud_mm.utils.tables import text_table

WORDS = dict(listed='skip', dense='static', none='vanished')
NUMBERS = itertools.count()
COLUMNS = ('backbone', 'blocks', 'mAP', 'eager_ms', 'compiled_ms', 'ratio_to_static')


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--profile', help='profile, or report of the latency hook')
    parser.add_argument('--tolerance', type=float, default=0.0)
    parser.add_argument('--images', type=int, default=20, help='that are timed')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--no-compile', dest='compile', action='store_false',
                        help='time eager forms only')
    parser.add_argument('--json', help='write the results to this file')
    return parser.parse_args()


def make_runner(args, folder):
    cfg = load_config(args.config, work_dir=folder)
    cfg.load_from = args.checkpoint
    cfg.experiment_name = f'specialised_{next(NUMBERS)}'  # each must have its own
    # They need a backbone that records.
    for name in ('activation', 'latency'):
        cfg.default_hooks.pop(name, None)
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    runner.model.eval()
    return runner


def evaluate(args, folder, change=None):
    """Metrics of the test set, with the model changed after it was loaded."""
    runner = make_runner(args, folder)
    if change is not None:
        change(unwrap(runner.model))
    return {name: float(value) for name, value in runner.test().items()}


def backbone_images(args, folder):
    """The test set as the backbone takes it."""
    runner = make_runner(args, folder)
    model = unwrap(runner.model)
    with torch.no_grad():
        return [model.data_preprocessor(data, False)['inputs'] for data in runner.test_dataloader]


def time_backbones(args, cfg, profile, images):
    """Times by (form, how it runs), and how many blocks remain of what kind."""
    size = tuple(images[0].shape[2:])
    net = build_backbone(cfg, args.checkpoint)
    forms = dict(skipping=net, deployed=deploy(net, image_size=size),
                 specialised=deploy(net, image_size=size, profile=profile,
                                    tolerance=args.tolerance))
    setting = BenchSetting('net', 'layer', 1.0, 1, image_size=size,
                           backbone=find_backbone_config(cfg.model)[1].to_dict())
    static = static_net(setting, net)
    last = partial(torch.Tensor.contiguous, memory_format=torch.channels_last)
    nets = {('static', 'eager'): lambda x: static(last(x))}
    if args.compile:
        compiled = compiled_static(setting, copy.deepcopy(net), last(images[0]))
        nets['static', 'compiled'] = lambda x: compiled(last(x))
    for name, form in forms.items():
        nets[name, 'eager'] = lambda x, form=form: form(last(x))
        if args.compile and form is not net:
            nets[name, 'compiled'] = CompiledBackbone(form)
    kinds = {name: [block.computes for block in form.blocks()]
             for name, form in forms.items() if form is not net}
    return {key: own.ms for key, own in time_nets(nets, images, 2, args.repeats).items()}, kinds


def main():
    args = parse_args()
    keep_freed_memory()
    try:
        cfg = load_config(args.config)
        profile = args.profile and load_profile(args.profile)
        with tempfile.TemporaryDirectory() as folder:
            images = backbone_images(args, folder)
            if profile is None:
                profile = UnitProfile.measure(build_backbone(cfg, args.checkpoint), images)
            about = dict(profile=profile, tolerance=args.tolerance, image_size=images[0].shape[2:])
            metrics = dict(skipping=evaluate(args, folder),
                           deployed=evaluate(args, folder, deploy),
                           specialised=evaluate(args, folder, partial(deploy, **about)))
    except (OSError, ValueError, CheckpointError) as error:
        sys.exit(f'error: {error}')
    with torch.no_grad():
        ms, kinds = time_backbones(args, cfg, profile, images[:args.images])
    fastest = min(own for (name, _), own in ms.items() if name == 'static')
    rows = []
    for name in ('static', 'skipping', 'deployed', 'specialised'):
        own = {how: value for (other, how), value in ms.items() if other == name}
        rows.append(dict(
            backbone=name, blocks=', '.join(
                f'{kinds[name].count(kind)} {word}' for kind, word in WORDS.items())
            if name in kinds else None, mAP=metrics.get(name, {}).get('coco/bbox_mAP'),
            **{f'{how}_ms': value for how, value in own.items()},
            ratio_to_static=min(own.values()) / fastest))
    print(text_table(rows, COLUMNS))
    if args.json:
        write_json(dict(stamp=device_stamp('cpu'), config=args.config, images=len(images),
                        timed_images=args.images, image_size=list(images[0].shape[2:]),
                        profile=args.profile or 'the test set', tolerance=args.tolerance,
                        repeats=args.repeats, metrics=metrics, results=rows), args.json)


if __name__ == '__main__':
    main()
