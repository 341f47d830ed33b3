"""What is written is there complete or not at all, and tables of one row look alike."""
import json

import pytest

from laud_mm.utils.files import replacing, write_csv, write_json
from laud_mm.utils.tables import html_table, markdown_table, text_table

ROWS = [dict(name='<a>', value=0.123456, count=None), dict(name='b', value=12345.6, count=3)]


def test_a_file_that_fails_half_way_leaves_what_was_there(tmp_path):
    write_json(dict(a=1), tmp_path / 'new' / 'a.json')
    with pytest.raises(RuntimeError), replacing(tmp_path / 'new' / 'a.json') as part:
        part.write_text('half')
        raise RuntimeError
    assert json.loads((tmp_path / 'new' / 'a.json').read_text()) == dict(a=1)
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['a.json']


def test_a_csv_has_the_keys_of_all_rows(tmp_path):
    write_csv([dict(a=1), dict(b=2)], tmp_path / 'a.csv')
    assert (tmp_path / 'a.csv').read_text().splitlines() == ['a,b', '1,', ',2']


def test_tables_show_the_same_cells():
    columns = ('name', 'value', 'count')
    assert text_table(ROWS, columns) == text_table(ROWS)
    assert text_table(ROWS).splitlines() == [
        'name   value  count', ' <a>  0.1235       ', '   b   12346      3']
    assert markdown_table(columns, [row.values() for row in ROWS]).splitlines() == [
        '| name | value | count |', '|---|---|---|', '| <a> | 0.1235 |  |', '| b | 12346 | 3 |']
    assert '<tr><td>&lt;a&gt;</td><td>0.1235</td><td></td></tr>' in html_table(ROWS)
