"""Durations and sizes as people read them."""


def clock(seconds: float) -> str:
    """A duration in hours, minutes and seconds: `0:00:42`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def seconds_text(seconds: float | None) -> str:
    """A duration in three digits and a fitting unit, `1.5 h` to `20 µs`; `-` for none."""
    if seconds is None:
        return "-"
    for unit, length in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def gib(size: float) -> str:
    """A number of bytes in GiB."""
    return f"{size / 2**30:.2f} GiB"
