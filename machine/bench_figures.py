"""Results of bench.py: ratios of times that were measured close together, and a printed table."""
import statistics

STEPS = ("read", "degrade", "interpolate", "features", "gather", "gather and Gram products",
         "solve", "apply", "write", "start by projections", "one stage of best", "all of best",
         "upscale, scan")
RESTORING = ("read", "degrade", "interpolate", "features", "apply", "write")  # steps of test.py
YARDSTICKS = ("cubic zoom", "sgemm", "dpotrf", "memory copy")


def ratios_of_run(run):
    """The ratios of the times of one run, by name."""
    one, four = run["1x"], run["4x"]
    rate = one["side"]**2 * one["samples"] / one["gather and Gram products"]
    restoring = one["interpolate"] + one["features"] + one["apply"]
    per_voxel = one["voxels"] / four["voxels"]
    whole, whole_4x = (sum(size[step] for step in RESTORING) for size in (one, four))
    return {"restore_vs_cubic_zoom": restoring / one["cubic zoom"],
            "gram_vs_sgemm": rate / (one["flops"] / one["sgemm"]),
            "solve_vs_dpotrf": one["solve"] / one["buckets"] / one["dpotrf"],
            "scaling_4x": whole_4x / whole * per_voxel,
            "restoring_scaling_4x": per_voxel * sum(
                four[step] for step in ("interpolate", "features", "apply")) / restoring,
            "best_scaling_4x": four["all of best"] / one["all of best"] * per_voxel,
            "upscale_scaling_4x": four["upscale, scan"] / one["upscale, scan"] * per_voxel,
            "stage_vs_cubic_zoom": one["one stage of best"] / one["cubic zoom"],
            "best_vs_cubic_zoom": one["all of best"] / one["cubic zoom"],
            "upscale_vs_cubic_zoom": one["upscale, scan"] / one["cubic zoom"],
            "io_share": (one["read"] + one["write"]) / whole}


def ratios(runs, processes):
    """The median of each ratio over the runs, and the peak memory."""
    each = [ratios_of_run(run) for run in runs]
    found = {name: round(statistics.median(one[name] for one in each), 4) for name in each[0]}
    return found | {"peak_train_gb": processes["train"]["peak_gb"],
                    "peak_test_gb": processes["test 4x"]["peak_gb"]}


def spread(runs):
    """The smallest and the largest value of each ratio over the runs."""
    each = [ratios_of_run(run) for run in runs]
    return {name: [round(pick(one[name] for one in each), 4) for pick in (min, max)]
            for name in each[0]}


def table(report):
    """The report as a table of text."""
    seconds, lines = report["seconds"], [f"{report['volume']}; {report['runs']} runs"]
    for name, value in report["machine"].items():
        lines.append(f"{name}: {', '.join(value) if isinstance(value, list) else value}")
    sizes = "".join(f"{size:>12}" for size in seconds)
    lines += ["", f"{'median seconds':26}{sizes}   of 1x: least and most"]
    for name in STEPS + YARDSTICKS:
        cells = [f"{seconds[size][name]['median']:12.3f}" if name in seconds[size] else " " * 12
                 for size in seconds]
        one = seconds["1x"][name]
        lines.append(f"{name:26}{''.join(cells)}   {one['least']:.3f} {one['most']:.3f}")
    for name in ("voxels", "restored", "samples"):
        lines.append(f"{name:26}" + "".join(f"{seconds[size][name]:12,}" for size in seconds))
    lines += ["", f"{'ratio':26}{'median':>12}   least and most"]
    for name, value in report["ratios"].items():
        least_most = "".join(f" {part:.3f}" for part in report["spread"].get(name, ()))
        lines.append(f"{name:26}{value:12.3f}  {least_most}".rstrip())
    lines += ["", f"{'whole process':26}{'seconds':>12}{'of cores':>12}{'peak GB':>12}"]
    for name, found in report["processes"].items():
        if "peak_gb" in found:
            lines.append(f"{name:26}{found['seconds']:12.1f}{found['processor_seconds']:12.1f}"
                         f"{found['peak_gb']:12.2f}")
    stages = report["processes"]["stages of test"].items()
    lines.append("test, by step: " + ", ".join(f"{name} {value:.2f}" for name, value in stages))
    return "\n".join(lines)
