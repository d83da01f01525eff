"""Messages about the filters that upscaled a scan: how much they were used, and how."""
from machine.progress import say
from restoring.adaptation import is_thick


def say_of_trust(name, seen, count=1, measured=False):
    """Print a message if volumes are unlike the training brains, for each of two consequences.

    Parameters
    ----------
    name : str
        Name of the scan.
    seen : dict of int to Estimates
        Estimates from each restored volume, by the volume's number from 0.
    count : int, optional
        Number of volumes of the scan.
    measured : bool, optional
        True for an interpolated scan on its measured grid, for which --profile is not used.
    """
    spline = {number: found.trust for number, found in seen.items() if found.trust < 1}
    blurred = {number: found.belief for number, found in seen.items()
               if found.belief < 1 and number not in spline}
    hint = "" if measured else " (if you know the slice profile, give --profile)"
    for shares, instead, end in (
            (spline, "{} of the weight goes to the quintic spline", ""),
            (blurred, "the least blur is assumed with {} of the weight", hint)):
        if shares:
            who, what, why = _in_words(shares, seen, count)
            instead = instead.format(what).replace(" with all of the weight", "")
            say(f"{name}: {who} unlike the training brains of the filters{why}; {instead}, so that "
                f"no detail is invented{end}")


def _in_words(shares, seen, count):
    """Which volumes have a weight below 1, what goes elsewhere, and why; parameters as above."""
    unlike, least = list(shares), min(shares.values())
    what = "all" if least == 0 else f"{max(1 - least, 0.01):.0%}"
    who = "is"
    if count > 1:
        who = f"volume {unlike[0] + 1} of {count} is"
    if len(unlike) > 1:
        who = f"{len(unlike)} of {count} volumes, such as volume {unlike[0] + 1}, are"
        what = f"up to {what}"
    why = seen[unlike[0]].reason
    return who, what, f" ({why})" if why and count == 1 else ""


def say_of_doubt(name, seen):
    """Print a message if the given profile has much more blur than the scan; `seen`: Estimates."""
    if seen.doubted:
        say(f"{name}: the given profile has more blur than the scan seems to have (it is most like "
            f"{seen.like}); a profile with too much blur does harm: leave --profile out unless "
            "you are sure")


def say_of_unlike_slices(name, seen, method):
    """Print a message if thick slices are unlike brains; no spline replaces their filters."""
    if not is_thick(method) or seen.distance is None:
        return
    if seen.distance > seen.usual:
        say(f"{name}: unlike the training brains of the filters (distance {seen.distance:.1f}, "
            f"usual up to {seen.usual:.1f}); filters for thick slices are used all the same: "
            "compare the result with the scan")


def say_of_later(name, uses):
    """Report filters for thick slices that follow other filters: they cannot be fine-tuned."""
    for tag in dict.fromkeys(use.method.tag for use in uses[1:] if is_thick(use.method)):
        say(f"{name}: the filters for {tag} are not fine-tuned on the scan, because another axis "
            "was restored before")
