"""latency.py compare: predicted against measured, here."""
from laud_mm.latency.plots import plot_predicted
from laud_mm.utils.tables import text_table

from .shared import add_measurement, add_outputs, bench_settings, track, write_outputs

HELP = 'predicted against measured, here'


def add_arguments(parser):
    add_measurement(parser)
    parser.add_argument('--calibration', required=True, help='file of `calibrate`')
    add_outputs(parser, 'predicted over measured')


def run(args):
    from laud_mm.latency.calibrated import CalibratedPredictor
    from laud_mm.profiling.bench import compare_setting
    predictor = CalibratedPredictor(args.calibration)
    rows = [compare_setting(setting, predictor, args.warmup, args.repeats)
            for setting in track(bench_settings(args))]
    print(text_table(rows, ('network', 'paradigm', 'rate', 'batch', 'measured_ms',
                              'predicted_ms', 'error', 'static_measured_ms',
                              'static_predicted_ms', 'static_error')))
    write_outputs(args, [dict(stamp=predictor.stamp, rows=rows)], rows)
    if args.plot:
        plot_predicted(rows, args.plot, group='paradigm', bound=0.10)
