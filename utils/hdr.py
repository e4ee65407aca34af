"""What HDR10 says of brightness beside its pictures: read from a frame, given to an encoder."""

from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type


class Light(NamedTuple):
    """screen: of the one that the video was made on, x and y of red, green, blue and white, then its least and its
    greatest luminance in cd/m2 (SMPTE ST 2086). content: the greatest luminance of a pixel, and of a whole frame on
    average (CTA 861.3). None where a video does not say."""

    screen: tuple[Fraction, ...] | None = None
    content: tuple[int, int] | None = None


class Option(NamedTuple):
    """How an encoder is told: the name of its option, its words in there, and its units of x and y and of luminance."""

    name: str
    screen: str
    content: str
    xy: int
    luminance: int


OPTIONS = {  # by codec; others do not keep it
    "h265": Option("x265-params", "master-display", "max-cll", 50000, 10000),
    "av1": Option("svtav1-params", "mastering-display", "content-light", 1, 1),
}


def light_of(frame: av.VideoFrame) -> Light:
    """What a decoded frame carries."""
    try:
        screen = frame.side_data.get(Type.MASTERING_DISPLAY_METADATA)
        content = frame.side_data.get(Type.CONTENT_LIGHT_LEVEL)
    except ValueError:  # PyAV gives no data at all beside a kind it does not know, such as a camera's EXIF
        return Light()
    if screen is not None:  # ten fractions, and whether x and y, and luminance are given
        *numbers, has_xy, has_luminance = np.frombuffer(screen, "<i4", 22).tolist()
        whole = has_xy and has_luminance and all(numbers[1::2])
        screen = tuple(map(Fraction, numbers[::2], numbers[1::2])) if whole else None
    content = (0, 0) if content is None else tuple(np.frombuffer(content, "<u4", 2).tolist())
    return Light(screen, content if any(content) else None)  # 0 stands for unknown


def light_options(codec: str, light: Light, options: dict[str, str]) -> dict[str, str]:
    """The options of a codec's encoder together with those for this light."""
    if codec not in OPTIONS or light == Light():
        return options
    option, words = OPTIONS[codec], []

    def numbers(values: tuple, unit: int) -> str:
        return ",".join(f"{float(value * unit):.{5 if unit == 1 else 0}f}" for value in values)

    if light.screen:
        red, green, blue, white = (numbers(light.screen[k : k + 2], option.xy) for k in (0, 2, 4, 6))
        luminance = numbers(light.screen[:7:-1], option.luminance)  # the greatest first
        words.append(f"{option.screen}=G({green})B({blue})R({red})WP({white})L({luminance})")
    if light.content:
        words.append("{}={},{}".format(option.content, *light.content))
    return options | {option.name: ":".join(filter(None, [options.get(option.name), *words]))}
