"""Evaluate filters for scans on scanners that are not in the training set.

    python docs/left_out.py scanners
    python docs/left_out.py scanners --seeds 0 1 2 --only siteA siteB --options --factor 1 1 4

The folder `scanners` holds one folder of brains for each scanner. One scanner after another is left
out: `train.py` learns filters from all other scanners, and `test.py --preset scan` evaluates them
on this scanner. Brains in `scanners/only_tested` are evaluated each time, but never used for
training: their licence may forbid it. For each scanner, the script prints the mean and worst gain
over the best alternative, inside and over the whole brain. Each metrics.csv stays in --work.
"""
import argparse
import csv
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

from options.command_line import command_line  # noqa: E402

NEVER_LEARNED = "only_tested"


def brains_of(folder):
    """The volumes of a scanner, also in folders within its folder."""
    return sorted(folder.rglob("*.nii*"))


def learn(volumes, arrays, seed, options):
    """Learn filters from volumes into a folder."""
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(volumes):
            Path(folder, f"{number:03}_{path.name}").symlink_to(path.resolve())
        run("train.py", "--preset", "scan", "--train_dir", folder, "--arrays_dir", str(arrays),
            "--seed", str(seed), *options)


def gains(folder, arrays, result, options):
    """Evaluate filters on a folder; returns the gains inside and whole, shape (cells, 2)."""
    run("test.py", "--preset", "scan", "--test_dir", str(folder), "--arrays_dir", str(arrays),
        "--result_dir", str(result), "--test_profile", "box", "gauss", "sharp", "kspace", "hamming",
        "--test_noise", "0", "1", "3", "5", *options)
    newest = max(result.glob("*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    with open(newest, newline="", encoding="utf-8") as file:
        return np.array([[float(row["gain_inside"]), float(row["gain_whole"])]
                         for row in csv.DictReader(file)])


def run(script, *arguments):
    """Run a script of the project; if it fails, end with a message."""
    done = subprocess.run([sys.executable, str(HERE / script), "--quiet", *arguments],
                          stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"{script} ended with status {done.returncode}, see above")


def line(name, found):
    """One row of the printed table."""
    found = np.concatenate(found)
    mean, worst, below = found.mean(0), found.min(0), (found < -0.05).sum(0)
    return (f"{name:24} {len(found):5} cells  mean {mean[0]:+.2f} / {mean[1]:+.2f}  "
            f"worst {worst[0]:+.2f} / {worst[1]:+.2f}  below {below[0]} / {below[1]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scanners", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", help="scanners to leave out (default: each)")
    parser.add_argument("--work", type=Path, default=Path("left_out"))
    parser.add_argument("--train_options", type=shlex.split, default=[], metavar="WORDS",
                        help="options for train.py alone, as one text: \"--draws 16\"")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[],
                        help="options for train.py and test.py, such as --factor")
    given = parser.parse_args()
    if not given.scanners.is_dir():
        parser.error(f"{given.scanners}: no such folder")
    folders = {path.name: path for path in sorted(given.scanners.iterdir()) if path.is_dir()}
    tested = folders.pop(NEVER_LEARNED, None)
    if empty := [name for name, folder in folders.items() if not brains_of(folder)]:
        parser.error(f"{given.scanners}: no volumes in {', '.join(empty)}")
    command_line("test", ["--preset", "scan", *given.options])  # before hours of learning
    command_line("train", ["--preset", "scan", *given.options, *given.train_options])
    if unknown := set(given.only or ()) - set(folders):
        parser.error(f"--only: no folder {' '.join(sorted(unknown))} in {given.scanners}")
    if len(folders) < 2:
        parser.error(f"{given.scanners}: needs a folder of brains for each of two or more scanners")
    found = {}
    for name in given.only or folders:
        others = [path for other, folder in folders.items() if other != name
                  for path in brains_of(folder)]
        for seed in given.seeds:
            work = given.work / f"{name}_{seed}"
            learn(others, work / "arrays", seed, [*given.options, *given.train_options])
            for tried, folder in [(name, folders[name]), (NEVER_LEARNED, tested)]:
                if folder is not None:
                    found.setdefault(tried, []).append(
                        gains(folder, work / "arrays", work / tried, given.options))
            print(line(name, found[name][-1:]) + f"  seed {seed}", flush=True)
    print("\nover all seeds")
    for name, cells in found.items():
        print(line(name, cells))


if __name__ == "__main__":
    main()
