"""Learn filters from high-resolution volumes.

    python train.py                              train/*.nii.gz -> arrays/h_2.npy
    python train.py --factor 3 --train_dir hcp   ... for a factor of 3, from another folder
    python train.py --restart                    ... from the beginning; ignores earlier sums
    python train.py --help

Each high-resolution (HR) volume is degraded and interpolated back to its grid, which gives the LR
volume. Voxels with similar gradients belong to one bucket (class). Each sampled voxel gives a pair:
its patch in the LR volume, and its value in the HR volume. Products of these pairs are summed for
each bucket (Gram matrices). At the end, least squares gives the filter of each bucket.

The sums are saved in arrays/QVF_2/. The same command continues a training that was stopped or
killed, and adds volumes that are new in the folder.
"""
import shlex
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from machine.errors import complain
from options.command_line import run


def main(request):
    """Learn from all volumes of the training folder; returns the exit status."""
    # Imported here: numba and nibabel take a second to load; --help and wrong options need neither.
    from disk.filters import save_filters
    from disk.interrupt import only_training, stopped
    from learning.steps import learn_stages, write_pictures
    from nifti.masks import masks_in_words
    from nifti.study import equal_files, find_volumes
    from structure import structure_of

    started = time.perf_counter()
    if request.scheduler:
        request = request.with_whole_paths("train_dir")
    volumes, masks = find_volumes(request.train_dir, request.method.train_file_max,
                                  request.include, request.exclude, mask=request.mask)
    plural = "s" if len(volumes) > 1 else ""
    print(f"Learning x{request.method.tag} filters from {len(volumes)} volume{plural} in "
          f"{request.train_dir}", flush=True)
    if request.mask:
        print(masks_in_words(masks, volumes, request.mask), flush=True)
    for path, other in equal_files(volumes):
        complain("train", f"{path}: has the same content as {other}, and counts once more; leave "
                          "it out with --exclude")
    with only_training(request.arrays_dir), place_of(request) as place:
        learned = learn_stages(volumes, request, place)
        if learned.signal:
            return stopped(learned.signal, learned.checkpoint)
        save_filters(learned.stages, request, sorted(learned.checkpoint.ledger.names()[0]))
        write_pictures(learned, request)
    summary = structure_of(request.method).summary(learned.stages, learned.counts)
    print(f"{summary} in {time.perf_counter() - started:.0f} s.\n"
          f"They are in {request.arrays_dir}; look at filters_{request.method.tag}.png and "
          f"samples_{request.method.tag}.png there. Next: {next_command(request)}\n"
          f"{about_use(request)}{about_sums(learned, request)}", flush=True)
    if learned.failed:
        complain("train", f"{len(learned.failed)} of {len(volumes)} volumes could not be used, "
                          "see above")
    return 1 if learned.failed else 0


def about_use(request):
    """A message about filters for scans that replace those of the project, with a way to choose."""
    # Imported here, as above.
    from disk.filters import replaced

    if not (project := replaced(request)):
        return ""
    return ("From now on, --upscale uses these filters for this factor, instead of the project's. "
            "Compare both: repeat that command with --arrays_dir "
            f"{shlex.quote(str(project))}\n")


def about_sums(learned, request):
    """A message that names the folder of the saved sums, and explains how to use them."""
    sums = f"{Path(request.arrays_dir, f'QVF_{request.method.tag}')}*"
    if not learned.saved:
        return (f"Not all sums could be saved in {sums}, see above: with more volumes, the same "
                "command repeats the sums that are missing.")
    return (f"The sums stay in {sums}: with more volumes in {request.train_dir}, the same "
            "command continues from them. Delete them if you will add no volumes.")


def place_of(request):
    """A context with the cluster that samples and sums volumes, or None for this process."""
    # Imported here, as above; Dask is optional.
    from engine import demanding_dask

    if not request.scheduler:
        return nullcontext()
    with demanding_dask():
        from cluster.training import on_cluster
    return on_cluster(request)


def next_command(request):
    """The command line that applies the learned filters."""
    words = ["python test.py"]
    if request.method.tag != "2":
        words.append(f"--factor {request.method.tag.replace('x', ' ')}")
    if request.arrays_dir != "arrays":
        words.append(f"--arrays_dir {shlex.quote(request.arrays_dir)}")
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(run("train", main))
