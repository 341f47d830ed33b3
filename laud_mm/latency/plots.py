"""Plots of latency figures."""
import math
from contextlib import contextmanager

from laud_mm.utils.files import replacing


@contextmanager
def figure(path, width=6.0, height=4.0):
    """A matplotlib axes that is saved to `path` (PNG, PDF or SVG) at the end."""
    from matplotlib.figure import Figure
    drawn = Figure(figsize=(width, height))
    yield drawn.subplots()
    drawn.tight_layout()
    with replacing(path) as part:
        drawn.savefig(part, dpi=120)


def plot_lines(rows, path, x, y='ratio', lines=('paradigm', 'granularity')):
    """Plot `y` over `x`, one line per combination of the `lines` columns that vary."""
    varying = [c for c in lines if len({row.get(c) for row in rows}) > 1]
    groups = {}
    for row in rows:
        key = ' '.join(str(row[c]) for c in varying if row.get(c) is not None)
        groups.setdefault(key, []).append(row)
    numeric = all(isinstance(row[x], (int, float)) for row in rows)
    with figure(path, width=8) as axes:
        for label, members in groups.items():
            if numeric:
                members = sorted(members, key=lambda row: row[x])
            axes.plot([row[x] if numeric else str(row[x]) for row in members],
                      [row[y] for row in members], marker='o', markersize=3, label=label or y)
        if y.endswith('ratio'):
            axes.axhline(1.0, color='grey', linewidth=0.8, linestyle=':')
        if x == 'batch' and numeric:
            axes.set_xscale('log', base=2)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if not numeric:
            axes.tick_params(axis='x', rotation=30)
        axes.legend(fontsize=7, title=', '.join(varying) or None, title_fontsize=7)


def plot_blocks(report, path):
    """Plot the latency of every block, static and dynamic, for a `LatencyReport`."""
    with figure(path, width=max(6.0, 0.25 * len(report.blocks)), height=4) as axes:
        places = range(len(report.blocks))
        for shift, label, values in (
                (-0.2, 'static', [b.static_latency_ms for b in report.blocks]),
                (0.2, 'dynamic', [b.latency_ms for b in report.blocks])):
            axes.bar([p + shift for p in places], [v / report.batch for v in values], 0.4,
                     label=label)
        axes.set_xticks(list(places), [b.name for b in report.blocks], rotation=90, fontsize=6)
        axes.set_ylabel('latency per image (ms)')
        axes.set_title(f'{report.device}, {report.mode}, {report.precision}, '
                       f'batch {report.batch}', fontsize=9)
        axes.legend()


def plot_report(report, path):
    """Plot a report of the latency hook: the rate of every block, and the latencies."""
    names = [block['name'] for block in report['blocks']]
    nets = {name: (p['latency_ms'], p['static_ms'])
            for name, p in report.get('predicted', {}).items()}
    if 'measured' in report:
        measured = report['measured']
        nets = {'measured': (measured['dynamic']['mean_ms'], measured['static']['mean_ms']),
                **nets}
    with figure(path, width=max(6.0, 0.25 * len(names)), height=4) as axes:
        axes.bar(range(len(names)), [block['rate'] for block in report['blocks']])
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_ylabel('rate')
        axes.set_ylim(0, 1)
        axes.set_title('; '.join(f'{name}: {dynamic:.3g} ms (static {static:.3g})'
                                 for name, (dynamic, static) in nets.items()), fontsize=8)


def plot_predicted(rows, path, measured='measured_ms', predicted='predicted_ms', group='op',
                   bound=0.15):
    """Plot predicted over measured latencies, with a band of +- `bound`."""
    from matplotlib.ticker import LogLocator, NullFormatter
    with figure(path, width=6, height=6) as axes:
        for name in sorted({str(row[group]) for row in rows}):
            own = [row for row in rows if str(row[group]) == name]
            axes.plot([r[measured] for r in own], [r[predicted] for r in own], '.', label=name,
                      markersize=4)
        low = min(min(r[measured], r[predicted]) for r in rows)
        high = max(max(r[measured], r[predicted]) for r in rows)
        axes.plot([low, high], [low, high], color='black', linewidth=0.8)
        axes.fill_between([low, high], [low * (1 - bound), high * (1 - bound)],
                          [low * (1 + bound), high * (1 + bound)], color='grey', alpha=0.2)
        axes.set_xscale('log')
        axes.set_yscale('log')
        # Labels of 1, 2 and 5: one per decade says little, one per tick overlaps.
        decades = math.log10(high / low)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 3 else (1,)))
            axis.set_major_formatter('{x:g}')
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel('measured (ms)')
        axes.set_ylabel('predicted (ms)')
        axes.legend(fontsize=6, ncols=2, loc='lower right')
