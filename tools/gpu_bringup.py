"""Bring a GPU up: build, test, sanitise, measure and compare, in five stages.

    gpu_bringup.py                     # all stages, at most 40 minutes
    gpu_bringup.py --stage 1 2         # some of them
    gpu_bringup.py --rehearse          # at small sizes on the CPU

Every stage writes its results as it goes into OUT/stageN.json; one that fails does not stop the
next. The exit status is 0 where everything holds, 1 where something does not, and 2 where
something could not be done, such as without a GPU.
"""
import argparse
import sys

from laud_mm.commands import gpu_bringup


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu_bringup.add_arguments(parser)
    return gpu_bringup.run(parser.parse_args(argv))


if __name__ == '__main__':
    sys.exit(main())
