"""The results of the Fashion-MNIST study, in a file."""
import json
from pathlib import Path

from laud_mm.latency.measure import device_stamp
from laud_mm.utils.files import write_json

from .digits_report import find_problems
from .fashion_report import ABLATED, make_table, plot_study


class Results:
    """The rows of a study, in a file that is complete after every run.

    Args:
        study (FashionStudy): The study.
        runs (dict[str, StudyRun]): Its runs by name.
        files (Sequence[str | Path]): The file, then others whose rows are taken too.
        limits (Limits): What must be reached.

    Attributes:
        rows (dict[str, dict]): Rows of the study's runs and recipes, by name.
    """

    def __init__(self, study, runs, files, limits):
        self.path, self.order, self.limits = Path(files[0]), list(runs), limits
        self.rows: dict[str, dict] = {}
        self.timed_on = None
        for file in files:
            if not Path(file).is_file():
                continue
            content = json.loads(Path(file).read_text())
            self.timed_on = self.timed_on or content.get('timed_on')
            for row in content['rows']:
                run = runs.get(row['name'])
                if run is not None and row['recipe'] == study.recipe(run):
                    self.rows.setdefault(row['name'], row)

    def add(self, row):
        """Add a row, and write all."""
        self.rows[row['name']] = row
        self._write()

    def lacks_times(self, runs):
        """Whether one of the runs has no times, and no other run has: all can be timed together."""
        timed = {name for name, row in self.rows.items()
                 if any(key.startswith('measured_ms') for key in row)}
        return timed < {run.name for run in runs}

    def add_times(self, times):
        """Add measured times by run, in place of those of before, and write all."""
        self.timed_on = device_stamp('cpu')
        for name, own in times.items():
            self.rows[name].update(own)
        self._write()

    def _write(self):
        self.rows = {name: self.rows[name] for name in self.order if name in self.rows}
        rows = list(self.rows.values())
        table, problems = self.report()
        write_json(dict(stamp=device_stamp('cpu'), timed_on=self.timed_on, rows=rows,
                        waiting=[name for name in self.order if name not in self.rows],
                        problems=problems), self.path)
        (self.path.parent / 'table.md').write_text(table + '\n')
        plot_study(rows, self.path.parent / 'accuracy.png')

    def report(self):
        """The tables, and what did not come out as it must."""
        rows = list(self.rows.values())
        judged = [row for row in rows if not row['name'].startswith(ABLATED)]
        return make_table(rows), find_problems(judged, self.limits) if judged else []
