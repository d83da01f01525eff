"""Run every kernel on small volumes, with options at their limits: ``every_kernel.py FOLDER``.

A script, since numba reads NUMBA_BOUNDSCHECK when it is imported.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

PUBLISHED = ("--q_angle_p", 1, "--q_angle_t", 1)
LEARNED = {
    "smallest": ("--filter_len", 3, "--grad_len", 3, *PUBLISHED),
    "widest window": ("--filter_len", 3, "--grad_len", 21, "--q_angle_p", 64, "--q_angle_t", 64,
                      "--feature_type", "trace_fa", "--sharpen"),
    "cg, k-space": ("--filter_len", 5, "--grad_len", 5, *PUBLISHED, "--solver", "cg",
                    "--lr_type", "kspace"),
    "widest ball": ("--preset", "best", "--filter_len", 13, "--stages", 1, "--leaves", 2,
                    "--back_projections", 20, "--sample_rate", 20),
    "smallest ball": ("--preset", "best", "--filter_len", 3, "--stages", 4, "--leaves", 1,
                      "--back_projections", 1),
    "thick": ("--feature_space", "octahedral", "--leaves", 3, "--filter_len", 5, "--start", "cubic",
              "--factor", 1, 1, 8, "--lr_type", "average"),
    "scan": ("--preset", "scan", "--filter_len", 3, "--draws", 2, "--leaves", 3, "--stages", 2),
}


def main(folder):
    # Here: after the paths are set.
    import numpy as np
    from conftest import load_script
    from synthetic import brain, save

    from filter_constant import Method
    from hashtable import Boundaries
    from matrix_compute import apply_filters
    from options.command_line import command_line
    from published.apply_filters import filter_voxels
    from report import filter_pictures

    filter_pictures.png = lambda figure, **_: b""  # no kernel draws, and drawing takes seconds

    save(folder / "train" / "v.nii", brain(0, (28, 27, 26)))
    filled = np.maximum(brain(1, (28, 27, 26)), 1)  # brain up to the faces
    save(folder / "test" / "v.nii", filled)
    save(folder / "low" / "v.nii", filled[:16, :15, :14])
    train, test = load_script("train"), load_script("test")
    for name, options in LEARNED.items():
        arrays = ["--arrays_dir", str(folder / name), "--quiet"]
        learning = command_line("train", [
            *arrays, "--train_dir", str(folder / "train"), *map(str, options)])
        assert train.main(learning) == 0, name
        applying = [*arrays, "--no-report", "--result_dir", str(folder / f"result {name}")]
        if "--factor" in options:
            applying += ["--factor", "1", "1", "8"]
        blend = ["--blend_threshold"] if name != "scan" else []  # figures of scans never blend
        for more in (["--test_dir", str(folder / "test"), *blend],
                     ["--test_dir", str(folder / "low"), "--upscale"]):
            if name == "cg, k-space" and "--upscale" in more:
                continue  # the published third upscales by 3 alone
            assert test.main(command_line("test", [*applying, *more])) == 0, name
    widest = Method(filter_len=21, grad_len=21, q_angle_p=1, q_angle_t=1)
    h = np.full((widest.buckets, widest.taps), 1 / widest.taps, np.float32)
    cube = np.ascontiguousarray(filled[:24, :24, :24])
    apply_filters(cube, h, Boundaries(np.zeros(2), np.zeros(2)), widest,
                  filter_voxels)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
