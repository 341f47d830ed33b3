"""Evaluate a checkpoint: test.py CONFIG CHECKPOINT [--work-dir DIR] [--execution masked] ..."""
import argparse
import os
import sys

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

from mmengine.dist import is_main_process
from mmengine.runner import Runner

from laud_mm.commands.evaluate import PredictionDump, paint_to, set_execution, use_tta
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
    parser.add_argument('--show-dir', help='save painted images to this folder; with mmdet, of '
                        "the work dir's folder of this run")
    parser.add_argument('--tta', action='store_true', help="test-time augmentation: the config's "
                        'tta_model and tta_pipeline, or every image as it is and flipped')
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
        execution = set_execution(cfg, args.execution)
        if args.show_dir:
            paint_to(cfg, args.show_dir)
        if args.tta and args.show_dir and cfg.get('default_scope') == 'mmpretrain':
            raise ValueError("--show-dir must be left out with --tta: mmpretrain's hook paints "
                             'the images of a batch, of which there are several each')
        if args.tta:
            use_tta(cfg)
        check_work_dir(cfg)
    except (FileNotFoundError, ValueError, WorkDirError) as error:
        sys.exit(f'error: {error}')
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.amp:
        cfg.test_cfg.fp16 = True
    use_cpu_processes(cfg)
    runner = Runner.from_cfg(cfg)
    if args.out:
        runner.register_hook(PredictionDump(args.out, cfg.get('default_scope')))
    metrics = runner.test()
    if is_main_process():
        about = dict(config=args.config, checkpoint=args.checkpoint, execution=execution,
                     tta=args.tta)
        table = write_results(metrics, runner.log_dir, about, configured_target(cfg))
        print(f'\n{table}\n\ntable and figures: {runner.log_dir}')


if __name__ == '__main__':
    main()
