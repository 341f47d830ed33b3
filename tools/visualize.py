"""Show what a trained network computes: an HTML report with overlays, rates and histograms.

    visualize.py CONFIG CHECKPOINT [--out DIR] [--images 200] [--pictures 8] [--run WORK_DIR]

Spatial skipping is laid over the images, block by block and stage by stage; layers, channels,
tokens and heads are drawn as units of every block. With --run, the tables and curves of that
training or test are added.
"""
import argparse
import sys
from pathlib import Path

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

from mmengine.config import DictAction
from mmengine.runner import Runner

from laud_mm.html_report import write_report
from laud_mm.inspection import inspect_set
from laud_mm.utils.run import check_data, load_config


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file; its test set is shown')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='folder of the report; default: work_dirs/<config>/report')
    parser.add_argument('--images', type=int, default=200, help='images of the histograms')
    parser.add_argument('--pictures', type=int, default=8, help='pictures of each kind')
    parser.add_argument('--run', help='work dir of a training or test, shown too')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='overrides, key=value')
    return parser.parse_args()


def inspect_config(config, checkpoint, images, pictures, cfg_options=None):
    """Build a config's model, load a checkpoint and run it over the test set.

    Returns:
        Inspection: See `inspect_set`.
    """
    cfg = load_config(config, cfg_options)
    check_data(cfg, ['test_dataloader'])
    if not Path(checkpoint).is_file():
        raise FileNotFoundError(f'checkpoint must be an existing file, got {checkpoint}')
    # A Runner knows how to build both kinds of models; it shall neither time nor log here.
    cfg.load_from, cfg.resume, cfg.log_level = checkpoint, False, 'WARNING'
    cfg.experiment_name = f'visualize_{Path(config).stem}'
    cfg.work_dir = str(Path(cfg.work_dir) / 'visualize')
    runner = Runner.from_cfg(cfg)
    runner.load_or_resume()
    runner.model.eval()
    return inspect_set(runner.model, runner.test_loop.dataloader, images, pictures)


def main():
    args = parse_args()
    out = Path(args.out or Path(args.run or Path('work_dirs', Path(args.config).stem), 'report'))
    try:
        for name in ('images', 'pictures'):
            if getattr(args, name) < 1:
                raise ValueError(f'--{name} must be at least 1, got {getattr(args, name)}')
        found = inspect_config(args.config, args.checkpoint, args.images, args.pictures,
                               args.cfg_options)
        page = write_report(out, f'{Path(args.config).stem}: what was computed', found, args.run)
    except (OSError, ValueError) as error:
        sys.exit(f'error: {error}')
    print(f'{len(found.fractions)} images, FLOPs fraction {found.fractions.mean():.3f}; '
          f'report: {page}')


if __name__ == '__main__':
    main()
