"""Scores turned into colours. Pure functions of numbers."""

SCALE_STEPS = 41

# ColorBrewer's OrRd: its lightness falls steadily, so that it reads the same without colour vision and in grey.
STOPS = (
    (255, 247, 236), (254, 232, 200), (253, 212, 158), (253, 187, 132), (252, 141, 89),
    (239, 101, 72), (215, 48, 31), (179, 0, 0), (127, 0, 0),
)  # fmt: skip
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def colour(score: float) -> tuple[int, int, int]:
    """Red, green, blue from 0 to 255 for a score: cream at 0, orange at the threshold, dark red at 1."""
    place = min(max(float(score), 0.0), 1.0) * (len(STOPS) - 1)
    low = min(int(place), len(STOPS) - 2)
    part = place - low
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(STOPS[low], STOPS[low + 1], strict=True))
    return red, green, blue


def text_colour(score: float) -> tuple[int, int, int]:
    """Black or white, whichever reads better on :func:`colour`; the contrast is always above 4.5 : 1."""
    light = luminance(colour(score))
    return BLACK if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else WHITE


def luminance(rgb: tuple[int, int, int]) -> float:
    """Relative luminance of an sRGB colour after WCAG 2, from 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def scale(steps: int = SCALE_STEPS) -> list[tuple[str, str]]:
    """(background, text colour) as CSS colours for scores from 0 to 1 in even steps; for the front end."""
    at = [step / (steps - 1) for step in range(steps)]
    return [(_css(colour(score)), _css(text_colour(score))) for score in at]


def _css(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)
