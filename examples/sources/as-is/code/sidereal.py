"""Which stars are due south now? Local sidereal time for the dome clock."""

LONGITUDE_EAST = -4.217  # degrees; the pillar of the refractor


def julian_date(unix_seconds: float) -> float:
    """Days since noon on 1 January 4713 BC."""
    return unix_seconds / 86400 + 2440587.5


def local_sidereal_time(unix_seconds: float) -> float:
    """Hours, 0 to 24. A star whose right ascension equals it stands on the meridian."""
    days = julian_date(unix_seconds) - 2451545.0
    degrees = 280.46061837 + 360.98564736629 * days + LONGITUDE_EAST
    return degrees % 360 / 15
