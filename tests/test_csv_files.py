"""CSV files, whole and damaged."""

import pytest

from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows, write_rows

COLUMNS = ("method", "top1")


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.csv"
    write_rows(path, COLUMNS, [{"method": 'a "b", c', "top1": 0.5}, {"method": "", "top1": "nan"}])
    assert path.read_text() == 'method,top1\n"a ""b"", c",0.5\n,nan\n'
    assert read_rows(path, COLUMNS, words=("method",)) == [
        {"method": 'a "b", c', "top1": "0.5"},
        {"method": "", "top1": "nan"},
    ]


def test_a_missing_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "a.csv", COLUMNS) == []


@pytest.mark.parametrize(
    "text",
    [
        "method\na\n",
        "method,top1\na\n",
        "method,top1\na,\n",
        "method,top1\na,half\n",
        "top1\n0.5\n",
        "top1,method\n1\n",
    ],
)
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"must be as it was written; restore it. Received: .*a.csv"):
        read_rows(path, COLUMNS, words=("method",))


@pytest.mark.parametrize("content", [b"method,top1\n\xff,1\n", b'method,top1\n"' + b"a" * 200_000 + b'",1\n'])
def test_a_file_that_is_no_text_is_named(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"can't be read \(.*\); restore it. Received: .*a.csv"):
        read_rows(path)
