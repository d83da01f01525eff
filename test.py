"""Degrade and restore high-resolution volumes as a test, or upscale low-resolution volumes.

    python test.py                        test/*.nii.gz -> result/<MMDDHH>/, metrics.csv beside them
    python test.py --upscale --test_dir scan.nii.gz --output scan_fine.nii.gz
    python test.py --look --test_dir scan.nii.gz
    python test.py --help

A test compares three volumes with the original: the LR volume (the initial estimate), the best
spline through the low-resolution volume, and the restored volume. It prints PSNR and SSIM over the
brain, and the gain over the spline. Upscaled volumes have no original, so they have no PSNR.
"""
import os
import shlex
import shutil
import sys
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from machine.errors import CannotWrite, FineAlready, UserError, complain, one_line, short_names
from options.checks import without_effect
from options.command_line import run

# Largest number of volumes with a viewer on the page of an evaluation; with more, browsers fail.
MOST_SHOWN = 100
# In a run with several upscaled volumes, the page of one volume may use PAGE_BYTES divided by this
# number. This gives 2 MB of slices, made in half the time that all slices would take.
OWN_SHARE = 30


def main(request):
    """Restore all volumes of the test folder; returns the exit status."""
    # Imported here: numba and nibabel take a second to load; --help and wrong options need neither.
    from disk.results import PATHS
    from disk.run_folder import run_folder
    from nifti.masks import masks_in_words
    from nifti.study import find_volumes
    from restoring.steps import FilterStore

    if request.look:
        return look_at(request)
    if request.scheduler:
        request = request.with_whole_paths(*PATHS)
    store = FilterStore(request)
    filters = store.first()
    volumes, masks = find_volumes(request.test_dir, None, request.include, request.exclude,
                                  request.into or request.result_dir, request.mask)
    if request.mask:
        print(masks_in_words(masks, volumes, request.mask))
    found = replace(request, method=filters.asked, arrays_dir=filters.folder)
    own = run_folder(found, volumes, store.digests())
    with own as folder, place_of(request, folder) as each:
        return restore_volumes(volumes, masks, folder, store, each)


def look_at(request):
    """Describe each volume of the test folder; returns the exit status."""
    # Imported here, as above.
    from machine.threads import in_turn
    from nifti.study import find_volumes
    from nifti.volumes import relative_name
    from restoring.looking import look
    from restoring.steps import FilterStore

    # The description names the filters that upscaling would use.
    store, failed = FilterStore(replace(request, upscale=True)), 0
    volumes, _ = find_volumes(request.test_dir, None, request.include, request.exclude,
                              request.result_dir, request.mask)
    for path, looked in in_turn(partial(look, store=store), volumes):
        try:
            lines = looked()
        except UserError as fault:
            complain("test", fault)
            failed += 1
        else:
            print(one_line(relative_name(path, request.test_dir)))
            for about, words in lines:
                print(f"  {about:9} {one_line(words)}", flush=True)
    return 0 if not failed else 2 if failed == len(volumes) else 1


@contextmanager
def place_of(request, folder):
    """A context that gives the function to process volumes: in this process or on a cluster."""
    # Imported here, as above; Dask is optional.
    from disk.files import remove_unfinished
    from disk.results import names_beside
    from engine import demanding_dask
    from machine.threads import in_turn

    if not request.scheduler:
        yield in_turn
        return
    with demanding_dask():
        from cluster.workers import connected
    try:
        with connected(request.scheduler, request.tls) as workers:
            yield workers.in_order
    except BaseException:
        # Processes of local:N end in the middle of a volume. Other workers finish their volumes.
        if request.scheduler.startswith("local"):
            names = names_beside(Path(request.output)) if request.output else None
            remove_unfinished(folder, names, running=not request.into)
        raise


def restore_volumes(volumes, masks, folder, store, each):
    """Restore volumes into a folder, without overwriting masks; returns the exit status."""
    # Imported here, as above.
    from disk.filters import learned_from
    from disk.metrics import mean_row, write_metrics
    from disk.results import VIEWERS, check_beside, page_of, sidecar_names
    from engine import choose_engine
    from machine.progress import progress
    from nifti.bids import check_description, makes_derivatives, write_description
    from nifti.volumes import relative_name, target_paths
    from restoring.whole_volume import restore_volume, without_name

    request, filters = store.request, store.first()
    method = filters.method
    if fault := without_effect(request, method.for_scans):
        raise UserError(fault)
    targets = target_paths(volumes, folder, request, masks)
    names = sidecar_names(targets)
    check_beside(folder, names, request)
    if dataset := makes_derivatives(request):
        check_description(folder)
    if not store.by_size:
        announce(filters, request)
    if not request.upscale:
        tested = {relative_name(path, request.test_dir) for path in volumes}
        if seen := sorted(tested.intersection(learned_from(filters))):
            complain("test", f"{len(seen)} of {len(tested)} volumes have the name of a training "
                             f"volume of these filters (such as {one_line(seen[0])}); figures of "
                             "volumes that were learned from are too good")
    engine = None  # workers of a cluster choose the CPU
    if request.scheduler:
        store.read_all()
    else:
        engine = choose_engine(request.device, filters.cpu_only, most=1)
    if method.for_scans and not request.upscale:
        from restoring.evaluation import evaluate_files  # as above

        return evaluate_files(volumes, folder, filters, request, engine, each)
    print_head(len(volumes), request, filters.asked)
    jobs = jobs_of(volumes, targets, names, folder, request)
    on_page = sum(job.shown and not job.page for job in jobs)
    work = partial(restore_volume, store=store, volumes=on_page or OWN_SHARE, command=sys.argv,
                   engine=engine)
    titles = short_names([relative_name(job.path, request.test_dir) for job in jobs])
    rows, entries, uses, digests, failed, missed = [], [], {}, {}, 0, 0
    with (progress(len(volumes), "restoring", "volume", request.quiet) as bar,
          stop_in_words(rows, len(volumes), folder, request)):
        for job, restored in each(work, jobs):
            title = relative_name(job.path, request.test_dir)
            bar.set_description(titles[title])
            try:
                done = restored()
            except CannotWrite:
                raise
            except UserError as fault:
                bar.clear()
                left = f"; its earlier result is still there: {job.target}"
                said = one_line(fault) + (left if os.path.exists(job.target) else "")
                complain("test", said)
                fine = isinstance(fault, FineAlready)
                failed += not fine
                entries.append((job, {"volume": title, "fine": fine, "failed": without_name(
                    said, job.path, title)}, None))
            else:
                if dataset and not rows:  # the folder has a first result
                    write_description(folder, request.test_dir, shlex.join(sys.argv))
                rows.append(done.row)
                if not request.upscale:
                    # Written after each volume, so that an interruption loses at most one row.
                    write_metrics(folder / "metrics.csv", rows)
                for use in done.uses:
                    if store.by_size and all(use.digests != one.digests for one in uses.values()):
                        announce(use, request, f" x{use.method.tag}")
                    uses[use.factor] = use
                bar.write(line(done.row, titles[title])
                          + (", finished before" if done.before else ""))
                if done.before and done.missed:
                    complain("test", f"{job.path}: {done.missed} of its volumes could not be "
                                     f"restored in an earlier run, see {job.target.parent}; "
                                     "--overwrite tries again")
                missed += done.missed
                entries.append((job, done.row | {"missed": done.missed}, done.viewer))
                digests[title] = done.digest
            bar.update()
    if not rows:
        return 2
    if not request.upscale and len(rows) > 1:
        print(line(mean_row(rows), "mean"))
    print(f"Restored volumes{'' if request.upscale else ' and metrics.csv'} are in {folder}")
    if request.report:
        # With --voxel_size or --isotropic, each volume has its own factor.
        asked, first = (done.method, done.uses[-1]) if len(uses) == 1 else (filters.asked, filters)
        page = page_of(folder, names, request)
        report_run(page, entries, replace(request, arrays_dir=first.folder),
                   asked, list(uses.values()), digests)
        if not request.into:
            shutil.rmtree(folder / VIEWERS, ignore_errors=True)
        print(f"Open the report in a browser: {page}", flush=True)
    if failed:
        complain("test", f"{failed} of {len(volumes)} volumes could not be restored, see above")
    return 1 if failed or missed else 0


def announce(filters, request, which=""):
    """Report the filters that are used; `which` is their factor, if volumes differ in it."""
    # Imported here, as above.
    from disk.filters import about_filters
    from machine.progress import say

    about = about_filters(filters, which)
    own = any(Path(request.arrays_dir).glob("settings_*.json"))
    if request.quiet and own and Path(request.arrays_dir) != Path(filters.folder):
        # Printed in spite of --quiet: the filters in the user's own folder are not used.
        complain("test", about)
    say(about)
    if request.upscale and not filters.method.for_scans:
        say("Note: these filters were learned without noise, and may sharpen the noise of a scan; "
            "--preset scan takes the filters for scans")


@contextmanager
def stop_in_words(rows, count, folder, request):
    """A context that says, if it is interrupted, that the same command restores the others."""
    try:
        yield
    except KeyboardInterrupt:
        if rows and not request.output:
            complain("test", f"{len(rows)} of {count} volumes are finished in {folder}; the same "
                             "command restores the others")
        raise


def jobs_of(volumes, targets, names, folder, request):
    """The volumes to restore: list of `Job`.

    Each of several upscaled volumes has its own page, and with --into also a single one, because
    later runs may add others. In other runs, one page shows the first MOST_SHOWN volumes.
    """
    # Imported here, as above.
    from disk.results import VIEWERS, has_own_pages, own_page, page_of
    from restoring.whole_volume import Job

    own = not request.output  # the run has its own folder
    study = has_own_pages(names, request)
    return [Job(*paths, shown=study or number < MOST_SHOWN, go_on=own,
                viewer=folder / VIEWERS / f"{paths[-1].relative_to(folder)}.json" if own else None,
                page=own_page(paths[-1]) if study else None,
                report=page_of(folder, names, request) if study else None)
            for number, paths in enumerate(zip(volumes, targets, names, strict=True))]


def report_run(path, entries, request, method, uses, digests):
    """Write the report page of a run.

    The page of several upscaled volumes has a table, other pages have figures and viewers.
    `entries` holds a `Job`, a row of figures and a `Done.viewer` for each volume.
    """
    # Imported here, as above.
    from disk.files import write_pieces
    from report.page import make_page
    from report.record import about_run, steps_of
    from report.study_page import study_page

    about = about_run(request, method, sys.argv, steps_of(uses)) | {"results": digests}
    restored = [entry for entry in entries if "failed" not in entry[1]]
    if entries[0][0].page:
        pages = {job: _from(path, job.page) for job, *_ in restored if job.page.is_file()}
        rows = [row | {"page": pages.get(job)} for job, row, _ in entries]
        pieces = study_page(about, rows, (
            str(_kept(job, viewer).get("thumbnail", "")) if job in pages else ""
            for job, _, viewer in entries))
    else:
        pictures = {}

        def viewers():
            for job, row, viewer in restored:
                if viewer := _kept(job, viewer):
                    yield viewer
                else:
                    pictures[row["volume"]] = _from(path, job.name.with_name(
                        f"{job.name.name}.png"))

        pieces = make_page(about, [row for _, row, _ in restored], viewers(), pictures)
    write_pieces(path, pieces)


def _kept(job, viewer):
    """A volume's viewer, or a dict with its thumbnail; empty if neither is there and whole."""
    # Imported here, as above.
    from disk.files import read_json

    if viewer or not job.viewer:
        return viewer or {}
    with suppress(ValueError):  # no file
        viewer = read_json(job.viewer)
        if "thumbnail" in viewer or {"name", "kinds", "planes"} <= set(viewer):
            return viewer
    return {}


def _from(page, path):
    """The path of a file relative to the folder of a page."""
    return path.relative_to(page.parent).as_posix()


def print_head(volumes, request, method):
    """Print the task and the column headings."""
    from disk.metrics import start_name  # as above

    doing, more = "Upscaling", ""
    if not request.upscale:
        doing = "Restoring"
        more = (f"; PSNR in dB and SSIM over the brain\n{'':32} {start_name(method.start):>16} "
                f"{'spline':>16} {'restored':>16}  gain over spline")
    plural = "s" if volumes > 1 else ""
    finer = f"x{method.tag}"
    if request.voxel_size or request.isotropic:
        size = " x ".join(f"{side:g}" for side in request.voxel_size or ())
        finer = f"to voxels of {size}" if size else "to isotropic voxels"
    print(f"{doing} {volumes} volume{plural} of {one_line(request.test_dir)}, {finer}{more}",
          flush=True)


def line(row, name):
    """The line that is printed about a restored volume; `name` is the short name of the volume."""
    if "to" in row:
        size = " x ".join(f"{side:g}" for side in row["voxel_size"])
        noise = f", noise about {100 * row['noise']:.1f} %" if "noise" in row else ""
        adapted = ", fine-tuned on it" if row.get("fine_tuned") else ""
        adapted = f", adapted to slices like {row['profile']}" if "profile" in row else adapted
        adapted += f", profile given: {row['told']}" if "told" in row else ""
        return (f"{name:32} {'x'.join(map(str, row['from']))} -> {'x'.join(map(str, row['to']))} "
                f"voxels of {size} {row['unit']}{noise}{adapted}, {row['seconds']:.1f} s")
    cells = "".join(f" {row[f'{image}_psnr']:8.2f} {row[f'{image}_ssim']:.4f} "
                    for image in ("lr", "spline5", "sr"))
    return f"{name:32}{cells} {row['gain_over_spline']:+.2f}"


if __name__ == "__main__":
    sys.exit(run("test", main))
