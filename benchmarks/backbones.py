"""Time LAUD backbones beside their static nets, eager and compiled: `tools/latency.py measure`.

    benchmarks/backbones.py --network resnet101 --paradigm layer --rate 0.5 --batch 8 --json OUT
"""
import sys

from laud_mm.commands.latency import main

if __name__ == '__main__':
    compiled = [] if '--no-compile' in sys.argv else ['--compile']
    main(__doc__, ['measure', *compiled, *(a for a in sys.argv[1:] if a != '--no-compile')])
