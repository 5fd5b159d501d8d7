"""Formats durations and sizes."""


def clock(seconds: float) -> str:
    """Formats a duration in hours, minutes and seconds: `0:00:42`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def seconds_text(seconds: float | None) -> str:
    """Formats a duration with three digits and a suitable unit, `1.5 h` to `20 µs`; None is `-`."""
    if seconds is None:
        return "-"
    for unit, length in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def gib(size: float) -> str:
    """Formats a number of bytes in GiB."""
    return f"{size / 2**30:.2f} GiB"
