"""The subcommands of `tools/latency.py`, one module each."""
import argparse
import sys

from . import calibrate, compare, measure, plan, predict, sweep
from .shared import check_networks, check_outputs

COMMANDS = dict(predict=predict, sweep=sweep, measure=measure, compare=compare,
                calibrate=calibrate, plan=plan)


def main(description, argv=None):
    """Parse a command line, refuse what is wrong before any work, and run its subcommand."""
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(commands.add_parser(name, help=command.HELP))
    args = parser.parse_args(argv)
    try:
        check_outputs(args)
        check_networks(args)
        COMMANDS[args.command].run(args)
    except (ValueError, FileNotFoundError, RuntimeError, ImportError) as error:
        sys.exit(f'error: {error}')
