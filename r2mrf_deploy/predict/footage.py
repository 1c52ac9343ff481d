"""The frames of films, cameras and streams: decoded, upright, with their times.

What libav may open is a short list: formats that are films, and of files nothing but the file itself.
"""

from __future__ import annotations

import math
import re
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import images
from r2mrf_deploy.errors import InputError, first_line, no_file
from r2mrf_deploy.wording import masked

FORMATS = {
    "mov": (".mp4", ".m4v", ".mov", ".3gp", ".3g2"),
    "matroska": (".mkv", ".webm"),
    "avi": (".avi",),
    "mpegts": (".ts", ".mts", ".m2ts"),
    "mpeg": (".mpg", ".mpeg", ".vob"),
    "asf": (".wmv", ".asf"),
    "flv": (".flv",),
    "ogg": (".ogv",),
    "mxf": (".mxf",),
}
"""The formats that are read, as libavformat calls them, and their suffixes. No others are tried, whatever a file is called:
some, such as playlists, make it open other files and addresses."""
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
PROTOCOLS = ("rtsp", "rtsps", "rtmp", "udp", "tcp", "srt")
STREAMED = (
    "rtsp",
    "rtp",
    "sdp",
    "flv",
    "live_flv",
    "mpegts",
    "matroska",
    "webm",
    "matroska,webm",
    "mov",
    "h264",
    "hevc",
)
"""The formats in which an address may send; none of them names other addresses."""
OPENING = 4.0
"""Seconds for each of the two steps of opening a live source: to connect, and to find what is in the stream."""
STALLED = 8.0
"""Seconds without data after which a live source has ended."""

_CAMERA = re.compile(r"camera:(\d+)")
_LIVE = re.compile(rf"(?:{'|'.join(PROTOCOLS)})://", re.IGNORECASE)
_USER = re.compile(r"(?<=://)\S*@")
_GAP = 0.5
"""Seconds by which a film may end earlier than it announces: encoders round, and count the sound."""


def is_film(text: str) -> bool:
    """Whether an input is a file that is called like a film. It may not exist."""
    return "://" not in text and Path(text).suffix.lower() in SUFFIXES and not Path(text).is_dir()


def is_live(text: str) -> bool:
    """Whether an input is a camera (`camera:0`) or the address of a stream (`rtsp://...`), rather than a file."""
    return bool(_CAMERA.fullmatch(text) or _LIVE.match(text))


def called(text: str) -> str:
    """A path whose last part can name what is made from an input: of a file its own, of a camera or an address what it says
    without its password."""
    if not is_live(text):
        return text
    return re.sub(r"\W+", "_", _USER.sub("", text).split("?")[0].split("://")[-1]).strip("_") or "stream"


@dataclass(frozen=True, eq=False)
class Frame:
    """A frame on its way. The map and what follows are there after the network."""

    number: int
    time: Fraction
    """Seconds from the start of the film."""
    duration: Fraction
    image: np.ndarray
    """uint8 [H, W, 3] RGB, upright."""
    focus: np.ndarray
    """float32 [H, W], or empty."""
    thumbnail: np.ndarray
    cut: bool = False


@contextmanager
def opened(source: str, limit: float | None) -> Iterator[Reader]:
    """Open a source. Raises InputError if it cannot be read."""
    import av
    from av.stream import Disposition

    name, live = masked(source), is_live(source)
    if not live and not Path(source).is_file():
        raise no_file(Path(source))
    address, options = _address(source)
    try:
        container = av.open(address, **options)
    except Exception as e:  # whatever a demuxer raises
        raise InputError(_refused(name, live, e)) from None
    with container:
        stream = container.streams.best("video")
        if stream is None or Disposition.attached_pic in Disposition(stream.disposition):
            raise InputError(f"{name} has no video stream: name a film")
        if stream.codec_context is None:
            raise InputError(f"{name}: this PyAV has no decoder for it; convert it to H.264 first")
        yield (Live if live else Reader)(name, container, stream, limit)


def _address(source: str) -> tuple[str, dict[str, Any]]:
    """What av.open is given for a source."""
    if camera := _CAMERA.fullmatch(source):
        return _camera(int(camera[1]))
    if not is_live(source):
        only = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
        return str(Path(source).absolute()), {"container_options": only}
    # the sender's file header, which names what follows, comes every few seconds; packets that TCP brings are not lost
    options = {"rtsp_flags": "prefer_tcp", "analyzeduration": "3000000", "format_whitelist": ",".join(STREAMED)}
    return source, {"options": options, "timeout": (OPENING, STALLED)}


def _camera(number: int) -> tuple[str, dict[str, Any]]:
    """What av.open is given for a camera. Raises InputError if there is none of this number."""
    timeout = (OPENING, STALLED)
    if sys.platform == "darwin":
        return f"{number}:none", {"format": "avfoundation", "timeout": timeout}
    if sys.platform == "win32":
        from av.device import enumerate_input_devices

        names = [device.name for device in enumerate_input_devices("dshow") if "video" in str(device.media_types)]
        if number >= len(names):
            raise InputError(f"there is no camera {number}: there are {len(names)}, counted from 0")
        return f"video={names[number]}", {"format": "dshow", "timeout": timeout}
    device = Path(f"/dev/video{number}")
    if not device.exists():
        numbers = sorted(int(p.name[5:]) for p in Path("/dev").glob("video*") if p.name[5:].isdigit())
        known = f"choose from {', '.join(f'camera:{n}' for n in numbers)}" if numbers else "connect one"
        raise InputError(f"there is no camera {number} ({device}): {known}")
    return str(device), {"format": "v4l2", "timeout": timeout}


def _refused(name: str, live: bool, error: Exception) -> str:
    """The message about a source that cannot be opened."""
    import av

    said = (error.strerror if isinstance(error, av.FFmpegError) else None) or first_line(error)
    if not live:
        return f"{name} is not a film, or is damaged ({said}); if players show it, convert it to mp4"
    if isinstance(error, av.error.ExitError):  # our time limit
        said = f"no answer within {2 * OPENING:.0f} seconds"
    cure = "check that no other program uses it" if _CAMERA.fullmatch(name) else "check the address and its sender"
    return f"{name} cannot be opened ({said}): {cure}"


class Reader:
    """The frames of an opened film, and what is known of it. `frames` is iterated over once."""

    live = False

    def __init__(self, name: str, container: Any, stream: Any, limit: float | None) -> None:
        self.name = name
        self.dropped = 0
        self._fault: str | None = None
        self.rotation = 0
        self.size = (0, 0)
        """(height, width) of the first frame, upright; the others are resized to it."""
        self.aspect: Fraction | None = None
        """Width by height of a pixel, upright, unless it is a square."""
        self.unit = Fraction(stream.time_base or Fraction(1, 90_000))
        rate = stream.average_rate or stream.guessed_rate
        self.rate = Fraction(rate) if rate and rate <= 1000 else None
        """Frames in a second, on average; None if the source does not say, or says nonsense."""
        self.limit = limit
        self._container, self._stream = container, stream
        self._last: Frame | None = None
        self._longest = 0.0
        self._origin = self._start()

    @property
    def error(self) -> str | None:
        """What is wrong with the source, of which some frames may be there."""
        return f"{self.name}: {self._fault}" if self._fault else None

    @property
    def total(self) -> int | None:
        """How many frames there will be, as far as the film says."""
        seconds = self._announced()
        if seconds is None or not self.rate:
            return None
        return max(1, round(min(seconds, self.limit or seconds) * self.rate))

    @property
    def nothing(self) -> str:
        """The message if not one frame came."""
        why = f" ({self._fault})" if self._fault else ""
        return f"{self.name}: not one frame can be decoded{why}; if players show it, convert it to mp4"

    def frames(self) -> Generator[Frame, None, None]:
        """Every frame, upright and with its time, until the end or the limit."""
        with closing(self._pictures()) as pictures:
            for number, picture in enumerate(pictures):
                when, duration = self._timed(picture)
                if not self.live and self.limit is not None and float(when) >= self.limit:
                    return
                image = self._upright(picture)
                empty = np.empty((0, 0), np.float32)
                self._last = Frame(number, when, duration, empty, empty, empty)
                yield replace(self._last, image=image)
        if not self.live:
            self._check_end()

    def _pictures(self) -> Generator[Any, None, None]:
        """Every av.VideoFrame that can be decoded. What cannot is skipped, and said in `error`."""
        self._stream.codec_context.thread_type = "AUTO"
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except Exception as e:
                self._damaged(e)
                return
            if packet is None:
                return
            try:
                found = packet.decode()
            except Exception as e:
                self._damaged(e, packet)
                continue
            yield from found
            if packet.is_corrupt or any(picture.is_corrupt for picture in found):
                self._damaged(None, packet)

    def _damaged(self, error: Exception | None, packet: Any = None) -> None:
        """Say in `error` that the source is damaged here. Before the first frame it is not: a recording begins anywhere."""
        if self._fault is not None or (packet is not None and self._last is None):
            return
        when = self._reached
        if packet is not None and packet.pts is not None:  # the decoder may be some frames behind
            when = max(when, float(packet.pts * self.unit - self._origin))
        said = getattr(error, "strerror", None) or (first_line(error) if error else "a part is missing")
        self._fault = f"damaged at {when:.1f} s ({said}); what could be decoded is kept"

    @property
    def _reached(self) -> float:
        """Seconds from the start of the film to the end of the last frame."""
        return float(self._last.time + self._last.duration) if self._last else 0.0

    def _check_end(self) -> None:
        """Say so if the film ended before the time that it announces."""
        announced = self._announced()
        if announced and self._fault is None and self._reached + _GAP + self._longest < announced:
            self._fault = f"cut off at {self._reached:.1f} s of {announced:.1f} s; what could be decoded is kept"

    def _announced(self) -> float | None:
        """Seconds to the end of the last frame, by what the film says. Other formats only estimate it."""
        container, stream = self._container, self._stream
        kind = container.format.name.split(",")[0]
        if kind in ("mov", "avi") and stream.duration:
            return float(stream.duration * self.unit)
        if kind == "matroska":
            if found := re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", "")):
                return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])
            if container.duration and len(container.streams) == 1:
                return container.duration / 1e6
        return None

    def _start(self) -> Fraction:
        """The time stamp, in seconds, at which the source starts: that of its sound, if it comes first."""
        start = Fraction(self._container.start_time or 0, 1_000_000)
        if start <= 0:
            start = min(Fraction(0), (self._stream.start_time or 0) * self.unit)
        return round(start / self.unit) * self.unit

    def _timed(self, picture: Any) -> tuple[Fraction, Fraction]:
        """When a frame is shown, in seconds from the start, and how long."""
        unit = Fraction(picture.time_base) if picture.time_base else self.unit
        duration = (picture.duration or 0) * unit
        if duration <= 0:
            duration = 1 / self.rate if self.rate else Fraction(1, 25)
        last = self._last
        expected = last.time + last.duration if last else Fraction(0)
        when = expected if picture.pts is None else picture.pts * unit - self._origin
        if last and when < last.time - 1:  # a recorder that was started again
            self._origin += when - expected
            when = expected
        if last:
            when = max(when, last.time + unit)
            self._longest = max(self._longest, float(when - last.time))
        return max(when, Fraction(0)), duration

    def _upright(self, picture: Any) -> np.ndarray:
        """uint8 [H, W, 3] RGB of a frame."""
        # by ITU-R BT.709 and by custom, high definition has other colours than standard definition
        plain = picture.colorspace == _UNSPECIFIED and picture.height >= 720
        image = picture.to_ndarray(format="rgb24", src_colorspace="ITU709" if plain else None)
        matrix = _display_matrix(picture)
        image = np.ascontiguousarray(turned(image, matrix))
        if self._last is None:
            self.size = (image.shape[0], image.shape[1])
            a, b = matrix[:2]
            self.rotation = round(math.degrees(math.atan2(b, a)) / 90) * 90 % 360
            aspect = self._stream.sample_aspect_ratio
            if aspect and aspect != 1:
                self.aspect = 1 / aspect if abs(b) > abs(a) else aspect
        return images.resize(image, self.size)


_UNSPECIFIED = 2
"""AVCOL_SPC_UNSPECIFIED"""


def _display_matrix(picture: Any) -> tuple[int, int, int, int]:
    """a, b, c, d of a frame's display matrix (ISO/IEC 14496-12, 6.2.2): the pixel x, y is shown at ax + cy, bx + dy."""
    found = picture.side_data.get("DISPLAYMATRIX")
    if found is None:
        return 1, 0, 0, 1
    matrix = np.frombuffer(bytes(found), np.int32)
    a, b, c, d = (int(matrix[n]) for n in (0, 1, 3, 4))
    return (a, b, c, d) if a * d - b * c else (1, 0, 0, 1)


def turned(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """An image, [H, W, C], as its display matrix says, to the nearest quarter of a turn."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


class Live(Reader):
    """The newest frames of a live source. A thread reads all of them, and keeps the last."""

    live = True

    def __init__(self, name: str, container: Any, stream: Any, limit: float | None) -> None:
        super().__init__(name, container, stream, limit)
        self._changed = threading.Condition()
        self._newest: Any = None
        self._ended = False
        self._first = True

    @property
    def total(self) -> int | None:
        return None

    @property
    def nothing(self) -> str:
        why = self._fault or ("`limit` is too short" if self.limit is not None else "it ended")
        return f"{self.name}: not one frame came ({why}); check its sender"

    def _pictures(self) -> Generator[Any, None, None]:
        self._stream.codec_context.thread_type = "SLICE"  # threads for whole frames would hold some back
        reading = threading.Thread(target=self._read, daemon=True)
        reading.start()
        deadline = math.inf if self.limit is None else time.monotonic() + self.limit
        try:
            while (picture := self._take(deadline)) is not None:
                yield picture
        finally:
            with self._changed:
                self._ended = True
                self.dropped += self._newest is not None
                self._newest = None
            reading.join()  # the source must not be closed under it; it waits for data no longer than STALLED

    def _take(self, deadline: float) -> Any:
        """Wait for the newest frame. None if there is none before the deadline, or the source has ended."""
        with self._changed:
            while (left := deadline - time.monotonic()) > 0:
                if self._newest is not None or self._ended:
                    picture, self._newest = self._newest, None
                    return picture
                self._changed.wait(min(left, 1.0))
        return None

    def _read(self) -> None:
        try:
            for packet in self._container.demux(self._stream):
                with suppress(Exception):  # a lost packet is no reason to stop
                    self._keep(packet.decode())
                if self._ended:
                    return
        except Exception as e:
            if not self._ended:
                said = f"nothing came for {STALLED:.0f} seconds" if "Exit" in type(e).__name__ else None
                self._fault = (
                    f"broke off at {self._reached:.1f} s ({said or getattr(e, 'strerror', None) or first_line(e)})"
                )
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _keep(self, pictures: Iterable[Any]) -> None:
        for picture in pictures:
            with self._changed:
                if self._ended:
                    return
                self.dropped += self._newest is not None
                self._newest = picture
                self._changed.notify_all()

    def _timed(self, picture: Any) -> tuple[Fraction, Fraction]:
        if self._first and picture.pts is not None:
            self._origin = picture.pts * Fraction(picture.time_base or self.unit)
        self._first = False
        return super()._timed(picture)
