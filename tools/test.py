"""Evaluate a checkpoint: test.py CONFIG CHECKPOINT [--work-dir DIR] [--execution masked] ..."""
import argparse
import os
import sys

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

from mmengine.dist import is_main_process
from mmengine.registry import METRICS
from mmengine.runner import Runner

from laud_mm.evaluation import configured_target, write_results
from laud_mm.specs import find_backbone_configs
from laud_mm.utils.run import (
    WorkDirError,
    augment_test,
    check_data,
    check_work_dir,
    load_config,
    paint_results,
    parse_run_arguments,
    use_cpu_processes,
)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='dump predictions to this .pkl file')
    parser.add_argument('--show-dir', help='save painted images to this folder of the work dir')
    parser.add_argument('--execution', choices=['auto', 'masked', 'skipping'],
                        help='how the backbone computes what it decided')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation: the config's "
                        'tta_model and tta_pipeline, default: also mirrored')
    args = parse_run_arguments(parser)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')
    return args


def dump_results(runner, path):
    """Add the metric that writes all predictions to a file."""
    scope = runner.cfg.get('default_scope')
    dump = METRICS.build(dict(type='mmdet.DumpDetResults' if scope == 'mmdet' else 'DumpResults',
                              out_file_path=path))
    runner.test_evaluator.metrics.append(dump)
    return dump


def main():
    args = parse_args()
    try:
        cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
        check_data(cfg, ['test_dataloader'])
        if '://' not in args.checkpoint and not os.path.isfile(args.checkpoint):
            raise FileNotFoundError(f'checkpoint must be an existing file, got {args.checkpoint}')
        check_work_dir(cfg)
        backbones = find_backbone_configs(cfg.model)
        for backbone in backbones.values():
            backbone.execution = args.execution or backbone.get('execution', 'auto')
        if args.show_dir:
            paint_results(cfg, args.show_dir)
        if args.tta:
            augment_test(cfg)
    except (FileNotFoundError, ValueError, WorkDirError) as error:
        sys.exit(f'error: {error}')
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.amp:
        cfg.test_cfg.fp16 = True
    use_cpu_processes(cfg)
    runner = Runner.from_cfg(cfg)
    dump = args.out and dump_results(runner, args.out)
    metrics = runner.test()
    if dump and dump.results:  # of an evaluator that evaluates its own metrics only
        dump.evaluate(len(runner.test_dataloader.dataset))
    if is_main_process():
        about = dict(config=args.config, checkpoint=args.checkpoint, tta=args.tta,
                     execution=', '.join(dict.fromkeys(
                         own.get('execution', 'auto') for own in backbones.values())) or None)
        table = write_results(metrics, runner.log_dir, about, configured_target(cfg))
        print(f'\n{table}\n\ntable and figures: {runner.log_dir}')


if __name__ == '__main__':
    main()
