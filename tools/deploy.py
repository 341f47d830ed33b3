"""Deploy the backbone of a config: an artefact that runs where no mm* package is.

    deploy.py CONFIG [CHECKPOINT] --out DIR [--to aoti] [--profile REPORT]

Writes DIR/net.pt2 and DIR/card.json, and checks them against the skipping network.
`laud_mm.deploy.load(DIR)` reads them, or for `--to aoti` the program in deploy/cpp.
"""
import argparse
import sys

from laud_mm.utils.stack import require_stack

require_stack()  # first: a wrong stack fails at the imports below, and names no fix

from laud_mm.checkpoints import CheckpointError
from laud_mm.commands import deploy


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    deploy.add_arguments(parser)
    args = parser.parse_args()
    try:
        card = deploy.run(args)
    except (OSError, ValueError, CheckpointError, RuntimeError) as error:
        sys.exit(f'error: {error}')
    print(deploy.summary(card, args.out))


if __name__ == '__main__':
    main()
