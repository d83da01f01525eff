"""files.py: files that are whole or not there at all."""
from pathlib import Path

import pytest

from disk.files import whole_file


def test_nothing_half_written_is_left(tmp_path):
    path = tmp_path / "x.npy"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as temporary:
        Path(temporary).write_text("half")
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"] and path.read_text() == "before"
