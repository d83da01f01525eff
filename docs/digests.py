"""Print the SHA-256 of filters and restored volumes for a range of settings.

Run the script before and after a change of the code that should not change any result:

    python docs/digests.py --train_dir DIR --test_dir DIR > before.txt
    python docs/digests.py --train_dir DIR --test_dir DIR | diff before.txt -

With two training brains and one test brain, all cropped to about 100^3 voxels, the script takes
three minutes on two cores.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEST = ("--preset", "best", "--leaves", "48", "--stages", "2")
# Name of a case: options of train.py, then the options of each run of test.py.
CASES = {
    "paper": ((), ((), ("--upscale",), ("--blend_threshold",))),
    "paper, cg": (
        ("--solver", "cg", "--sharpen", "--sample_rate", "2", "--filter_len", "7"),
        ((),),
    ),
    "paper, x3": (
        ("--factor", "3", "--filter_len", "7", "--max_memory", "1.2"),
        ((), ("--upscale", "--dtype", "same")),
    ),
    "kspace": (("--lr_type", "kspace", "--filter_len", "7"), ((),)),
    "kspace, auto": (("--lr_type", "kspace", "--kspace_keep", "auto", *BEST), ((), ("--upscale",))),
    "1 x 1 x 4": (("--factor", "1", "1", "4", "--lr_type", "average", *BEST), ((), ("--upscale",))),
    "best": (BEST, ((), ("--upscale",))),
    "edges, cubic, octahedral": (
        (
            "--grid",
            "edges",
            "--start",
            "cubic",
            "--feature_space",
            "octahedral",
            "--filter_len",
            "7",
        ),
        ((), ("--upscale",)),
    ),
}
KEPT = (".nii.gz", ".npy", "metrics.csv", "Qfactor_str2", "Qfactor_coh2")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train_dir", required=True, help="volumes to learn from")
    parser.add_argument("--test_dir", required=True, help="volumes to restore")
    given = parser.parse_args()
    for name, (learning, restorings) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            factor = (
                learning[: learning.index("--lr_type")]
                if "4" in learning[:4]
                else learning[:2]
                if "3" in learning[:2]
                else ()
            )
            command(
                "train.py",
                "--train_dir",
                given.train_dir,
                "--arrays_dir",
                f"{folder}/arrays",
                *learning,
            )
            show(name, Path(folder, "arrays"), "*")
            for options in restorings:
                result = Path(folder, "result" + "".join(options))
                command(
                    "test.py",
                    "--test_dir",
                    given.test_dir,
                    "--arrays_dir",
                    f"{folder}/arrays",
                    "--no-report",
                    "--result_dir",
                    result,
                    *factor,
                    *options,
                )
                show(" ".join([name, *options]), result, "*/*")


def command(script, *arguments):
    """Run a script of the project with --quiet."""
    subprocess.run(
        [sys.executable, ROOT / script, "--quiet", *map(str, arguments)], check=True, cwd=ROOT
    )


def show(name, folder, pattern):
    """Print one line for each file of filters or results in a folder."""
    for path in sorted(folder.glob(pattern)):
        if path.name.endswith(KEPT):
            print(hashlib.sha256(path.read_bytes()).hexdigest(), name, path.name, flush=True)


if __name__ == "__main__":
    main()
