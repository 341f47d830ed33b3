"""Train a model: train.py CONFIG [--work-dir DIR] [--amp] [--resume [CHECKPOINT]] ..."""
import argparse
import os
import sys

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

from mmengine.runner import Runner

from laud_mm.checkpoints import find_resumable
from laud_mm.utils.run import (
    WorkDirError,
    check_data,
    check_teacher,
    check_work_dir,
    enable_amp,
    load_config,
    parse_run_arguments,
    use_cpu_processes,
)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help="scale lr by the real batch size over the config's base_batch_size")
    parser.add_argument('--resume', nargs='?', const='auto',
                        help='go on from this checkpoint; without a value, from the newest '
                        'complete one in the work dir (from the start if there is none)')
    return parse_run_arguments(parser)


def main():
    args = parse_args()
    try:
        cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
        check_data(cfg, ['train_dataloader', 'val_dataloader'])
        check_teacher(cfg)
        if args.resume not in (None, 'auto') and not os.path.isfile(args.resume):
            raise FileNotFoundError(f'--resume must be an existing checkpoint, got {args.resume}')
        if args.auto_scale_lr and 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
            raise ValueError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
        check_work_dir(cfg)
    except (FileNotFoundError, ValueError, WorkDirError) as error:
        sys.exit(f'error: {error}')
    if args.amp:
        enable_amp(cfg)
    if args.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    if args.resume is not None:
        found = find_resumable(cfg.work_dir) if args.resume == 'auto' else args.resume
        if found:
            cfg.resume, cfg.load_from = True, str(found)
    use_cpu_processes(cfg)
    Runner.from_cfg(cfg).train()


if __name__ == '__main__':
    main()
