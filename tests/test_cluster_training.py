"""train.py --scheduler: the filters of the plain run, and one line for what is wrong."""
import numpy as np
import pytest
from synthetic import QUICK, brain, command, save

pytest.importorskip("distributed", reason="needs requirements-cluster.txt")
BEST = ("--preset", "best", "--stages", "2", "--leaves", "4", "--filter_len", "5")


@pytest.mark.parametrize(("options", "files"), [(QUICK, ["h_2.npy"]), (BEST, None)])
def test_filters_are_those_of_the_plain_run(options, files, tmp_path):
    for n in range(3):
        save(tmp_path / "train" / f"v{n}.nii.gz", brain(n))
    (tmp_path / "train" / "bad.nii.gz").write_bytes(b"no volume")
    for name, more in (("plain", ()), ("cluster", ("--scheduler", "local:2"))):
        status, out, errors = command("train.py", "--train_dir", tmp_path / "train", "--arrays_dir",
                                      tmp_path / name, *options, *more)
        assert status == 1 and "bad.nii.gz" in errors[0] and len(errors) == 2, errors
    assert "Cluster: 2 workers" in out and "on worker tcp://" in errors[0]
    names = files or [path.name for path in (tmp_path / "plain").glob("*.npy")]
    assert names
    for name in names:
        ours, theirs = (np.load(tmp_path / run / name) for run in ("cluster", "plain"))
        # Sums are added in another order; solving makes that rounding larger by the condition.
        assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path):
    save(tmp_path / "train" / "v.nii.gz", brain())
    status, _, errors = command("train.py", "--train_dir", tmp_path / "train", "--arrays_dir",
                                tmp_path / "arrays", "--scheduler", "tcp://127.0.0.1:9")
    assert status == 2 and len(errors) == 1
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in errors[0]
