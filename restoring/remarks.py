"""Messages about the filters that upscaled a scan: how much they were used, and how."""
from machine.progress import say
from restoring.adaptation import is_thick


def say_of_trust(name, seen, count=1, measured=False):
    """Print one message if any volume is unlike the training brains, and what follows from it.

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
    unlike = [number for number, found in seen.items() if min(found.trust, found.belief) < 1]
    if not unlike:
        return
    trust, belief = (min(getattr(found, name) for found in seen.values())
                     for name in ("trust", "belief"))
    least = trust if trust < 1 else belief
    what = "all" if least == 0 else f"{1 - least:.0%}"
    who = "is"
    if count > 1:
        who = f"volume {unlike[0] + 1} of {count} is"
    if len(unlike) > 1:
        who = f"{len(unlike)} of {count} volumes, such as volume {unlike[0] + 1}, are"
        what = f"up to {what}"
    why = seen[unlike[0]].reason
    why = f" ({why})" if why and count == 1 else ""
    part = "" if what == "all" else f" with {what} of the weight"
    instead, hint = f"the least blur is assumed{part}", ""
    if trust < 1:
        instead = f"{what} of the weight goes to the quintic spline"
    elif not measured:
        hint = " (if you know the slice profile, give --profile)"
    say(f"{name}: {who} unlike the training brains of the filters{why}; {instead}, so that no "
        f"detail is invented{hint}")


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
