"""Time the analytic predictor itself, on one core: one network, and a sweep of 100 settings.

    benchmarks/predictor.py --json benchmarks/results/predictor.json
"""
import argparse
import os
import time

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before NumPy is imported

from laud_mm.latency import AnalyticPredictor
from laud_mm.latency.kernels import _log_factorials, tile_candidates
from laud_mm.latency.machine import cpu_name
from laud_mm.latency.sweep import Predictors, sweep_settings
from laud_mm.specs import network_spec
from laud_mm.utils.files import write_json
from laud_mm.utils.tables import text_table


def cold_prediction_ms(paradigm, published):
    """One ResNet-101 with every cache empty."""
    tile_candidates.cache_clear()
    _log_factorials.cache_clear()
    spec = network_spec('resnet101', paradigm=paradigm)
    start = time.perf_counter()
    AnalyticPredictor('V100', published=published).predict(spec, 0.4, 128)
    return (time.perf_counter() - start) * 1e3


def sweep_ms():
    """100 settings, all different."""
    settings = sweep_settings(
        ['resnet101'], ['layer', 'channel', 'spatial'], [i / 10 for i in range(1, 11)],
        ['V100', 'TX2'], granularities=[(4, 4, 2, 1), (8, 4, 2, 1)])[:100]
    assert len(set(settings)) == 100
    start = time.perf_counter()
    predictors = Predictors()
    for setting in settings:
        predictors.predict(setting)
    return (time.perf_counter() - start) * 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--json', help='write the results to this file')
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    for published in (True, False):
        for paradigm in ('layer', 'channel', 'spatial'):
            times = [cold_prediction_ms(paradigm, published) for _ in range(args.repeats)]
            rows.append(dict(what=f'resnet101 {paradigm}, V100, batch 128',
                             mode='published' if published else 'analytic',
                             median_ms=sorted(times)[len(times) // 2], worst_ms=max(times)))
    times = [sweep_ms() for _ in range(args.repeats)]
    rows.append(dict(what='sweep of 100 resnet101 settings', mode='analytic',
                     median_ms=sorted(times)[len(times) // 2], worst_ms=max(times)))
    print(text_table(rows, ('what', 'mode', 'median_ms', 'worst_ms')))
    if args.json:
        write_json(dict(stamp=dict(name=cpu_name(), cores=1), results=rows), args.json)


if __name__ == '__main__':
    main()
