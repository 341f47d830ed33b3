"""Evaluate a checkpoint: test.py CONFIG CHECKPOINT [--work-dir DIR] [--execution masked] ..."""
import argparse
import os
import sys

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

from mmengine.dist import is_main_process
from mmengine.runner import Runner

from laud_mm.evaluation import configured_target, write_results
from laud_mm.utils.run import (
    WorkDirError,
    check_data,
    check_work_dir,
    load_config,
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
    args = parse_run_arguments(parser)
    if args.out and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out must end in .pkl or .pickle, got {args.out}')
    return args


def main():
    args = parse_args()
    try:
        cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
        check_data(cfg, ['test_dataloader'])
        if '://' not in args.checkpoint and not os.path.isfile(args.checkpoint):
            raise FileNotFoundError(f'checkpoint must be an existing file, got {args.checkpoint}')
        check_work_dir(cfg)
    except (FileNotFoundError, WorkDirError) as error:
        sys.exit(f'error: {error}')
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.execution:
        cfg.model.backbone.execution = args.execution
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show_dir:
        painter = cfg.default_hooks.setdefault('visualization', {})
        if cfg.get('default_scope') == 'mmpretrain':
            painter.update(type='VisualizationHook', enable=True, out_dir=args.show_dir)
        else:
            painter.update(type='DetVisualizationHook', draw=True, test_out_dir=args.show_dir)
    if args.out:
        evaluators = cfg.test_evaluator
        evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
        dump = 'DumpDetResults' if cfg.get('default_scope') == 'mmdet' else 'DumpResults'
        cfg.test_evaluator = [*evaluators, dict(type=dump, out_file_path=args.out)]
    use_cpu_processes(cfg)
    runner = Runner.from_cfg(cfg)
    metrics = runner.test()
    if is_main_process():
        about = dict(config=args.config, checkpoint=args.checkpoint,
                     execution=cfg.model.get('backbone', {}).get('execution', 'auto'))
        table = write_results(metrics, runner.log_dir, about, configured_target(cfg))
        print(f'\n{table}\n\ntable and figures: {runner.log_dir}')


if __name__ == '__main__':
    main()
