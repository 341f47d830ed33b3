"""Measure the scales that a quantised network needs, on a folder of images.

    quantize.py CONFIG CHECKPOINT --calib FOLDER --out FILE

`laud_mm.deploy(model, quantized=FILE)` and `tools/deploy.py --quantized FILE` read FILE.
"""
import argparse
import sys

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

from laud_mm.checkpoints import CheckpointError
from laud_mm.commands import quantize


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    quantize.add_arguments(parser)
    args = parser.parse_args()
    try:
        found = quantize.run(args)
    except (OSError, ValueError, CheckpointError) as error:
        sys.exit(f'error: {error}')
    print(quantize.summary(found, args.out))


if __name__ == '__main__':
    main()
