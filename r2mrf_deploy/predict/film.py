"""`r2mrf predict clip.mp4 camera:0 rtsp://...`: a film, a camera or a stream becomes films of maps and overlays.

Reading, the network, drawing and encoding overlap, and only a few frames are in memory at once, however long the film is. Of
a live source only the newest frame is kept: what comes while the network is busy is dropped, and counted.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import drawing, images
from r2mrf_deploy.concurrency import ordered_map
from r2mrf_deploy.errors import InputError, RuntimeUnavailable, UsageError, did_you_mean, first_line, no_file
from r2mrf_deploy.files import flush, refuse_unwritable, staging
from r2mrf_deploy.predict import smoothing
from r2mrf_deploy.predict.scores import Scores
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import Interrupted, Progress, ProgressCallback, silent
from r2mrf_deploy.wording import count

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
OUTPUTS = {"map": "_map.mp4", "overlay": "_overlay.mp4", "scores": "_scores.jsonl"}
"""What can be saved, and how its file's name ends."""
PROTOCOLS = ("rtsp", "rtsps", "rtmp", "udp", "tcp", "srt")
ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""The first of these that libav has here is used. All others of H.264 need hardware, or are not there at all."""
OPENING = 4.0
"""Seconds for each of the two steps of opening a live source: to connect, and to find what is in the stream."""
STALLED = 8.0
"""Seconds without data after which a live source has ended."""

_CAMERA = re.compile(r"camera:(\d+)")
_LIVE = re.compile(rf"(?:{'|'.join(PROTOCOLS)})://", re.IGNORECASE)
_PASSWORD = re.compile(r"(?<=:)//([^/@:\s]*):[^/@\s]*@")
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
    return re.sub(r"\W+", "_", _PASSWORD.sub("//", text.split("?")[0]).split("://")[-1]).strip("_") or "stream"


@dataclass(frozen=True)
class Film:
    """What became of one film."""

    source: str
    """Without its password, if it is an address that has one."""
    outputs: dict[str, Path]
    """`map`, `overlay` and `scores`, of which those that were asked for. Empty if not a single frame was seen."""
    frames: int
    dropped: int
    """Frames of a live source that came while the network was busy."""
    cuts: int
    seconds: float
    """From the first frame to the end of the last one."""
    frame_rate: float
    """The source's average."""
    rotation: int
    """By how many degrees clockwise the source says that its frames are to be turned, which they were: 0, 90, 180 or 270."""
    width: int
    """Of the upright source."""
    height: int
    in_focus: float | None
    """The mean of all frames: see `Scores`."""
    subject: float | None
    """The mean of all frames: see `Scores`."""
    frames_per_second: float
    """How many frames were seen in a second of work."""
    error: str | None = None
    """What is wrong with a source that is damaged or broke off. What could be decoded is kept."""

    def summary(self) -> str:
        """What else there is to say of it, in a few words."""
        dropped = f", {self.dropped:,} dropped" if self.dropped else ""
        cuts = f", {count(self.cuts, 'cut')}" if self.cuts else ""
        return f"{count(self.frames, 'frame')}{dropped}{cuts}, {self.frames_per_second:.1f} per second"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Frame:
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


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What is written of a frame."""

    number: int
    time: Fraction
    duration: Fraction
    cut: bool
    scores: Scores
    pictures: dict[str, Any]
    """av.VideoFrame by output."""


def film(
    predictor: Predictor,
    source: str,
    output: Path,
    name: str,
    *,
    save: Collection[str] = ("overlay",),
    overlay_side: int = drawing.OVERLAY_SIDE,
    smooth: float = 0.0,
    limit: float | None = None,
    streams: int = 1,
    progress: ProgressCallback = silent,
) -> Film:
    """Write `NAME_map.mp4` (grey, white = in focus) at the size of the film, `NAME_overlay.mp4`, whose longest side is at
    most `overlay_side` pixels, and `NAME_scores.jsonl`, a line for each frame: its number, its time in seconds, whether it
    is the first after a cut, and the scores of its map.

    The films are H.264 (MPEG-4 if libav has no encoder for it) with 4:2:0 colours, which need even sides: an odd one is
    continued by a copy of its last row or column. Frames are upright, and keep the times that they have in the source,
    counted from its start; if it says none, or goes back, a frame follows that before. Frames of high dynamic range are
    converted to 8 bits without tone mapping. There is no sound.

    Args:
        predictor: what makes the maps, in several threads if `streams` is over 1.
        source: a film's path, `camera:N`, or the address of a stream: see `is_live`.
        output: the folder.
        name: what the names of the files begin with.
        save: some of `map`, `overlay` and `scores`.
        overlay_side: the longest side of the overlay, in pixels.
        smooth: the time constant of the running mean of the maps, in seconds; it starts anew at cuts. 0 leaves every map as
            it is. The scores are those of the mean.
        limit: the most seconds: of a film, of its own time; of a live source, of the clock.
        streams: how many frames the network works on at once.
        progress: is told after every frame.

    Returns:
        What was done; of a source that is damaged or breaks off, with `error`.

    Raises:
        UsageError: an option is meaningless, or an output would overwrite the source.
        InputError: the source does not exist or does not answer, is no film, or not one frame of it can be decoded.
        ArtifactError: the files cannot be written, or the map is not finite. No file is changed then.
        RuntimeUnavailable: libav has no encoder for films here.
        ModuleNotFoundError: PyAV is not installed.
        Interrupted: Ctrl-C, with the Film so far, whose files are complete.
    """
    _refuse_options(save, overlay_side, smooth, limit, streams)
    codec = _encoder()
    paths = {what: output / f"{name}{end}" for what, end in OUTPUTS.items() if what in save}
    for path in paths.values():
        refuse_unwritable(path)
        if os.path.realpath(path) == os.path.realpath(source):
            raise UsageError(f"what is made from {source} would overwrite it: choose another `output` folder")

    def look(frame: _Frame) -> _Frame:
        return replace(frame, focus=predictor(frame.image), thumbnail=smoothing.thumbnail(frame.image))

    with _opened(source, limit) as reader, staging(next(iter(paths.values()))) as folder:
        staged = {what: folder / f"{what}{path.suffix}" for what, path in paths.items()}
        recorder = _Recorder(staged, reader, codec)
        interrupted, start = False, time.monotonic()
        try:
            for done in _written(reader, look, recorder, overlay_side, smooth, streams):
                progress(Progress(Path(reader.name).name, done, reader.total))
        except KeyboardInterrupt:
            interrupted = True
        except BaseException:
            recorder.abandon()
            raise
        elapsed = time.monotonic() - start
        recorder.close()
        if recorder.frames:
            for what, path in paths.items():
                flush(staged[what])
                staged[what].replace(path)
        elif not interrupted:
            raise InputError(reader.nothing)
        result = recorder.film(paths if recorder.frames else {}, elapsed)
    if interrupted:
        raise Interrupted(result)
    return result


def _refuse_options(save: Collection[str], overlay_side: int, smooth: float, limit: float | None, streams: int) -> None:
    for what in save:
        if what not in OUTPUTS:
            raise UsageError(f"`save` {what}: a film has no such output; {did_you_mean(what, OUTPUTS)}")
    if not save:
        raise UsageError(f"`save` names no output: choose from {', '.join(OUTPUTS)}")
    for option, valid, cure in (
        ("overlay_side", overlay_side >= 1, "1 pixel or more"),
        ("smooth", math.isfinite(smooth) and smooth >= 0, "0 seconds or more"),
        ("limit", limit is None or limit > 0, "more than 0 seconds"),
        ("streams", streams >= 1, "1 or more"),
    ):
        if not valid:
            raise UsageError(f"`{option}` must be {cure}")


def _written(
    reader: _Reader,
    look: Callable[[_Frame], _Frame],
    recorder: _Recorder,
    overlay_side: int,
    smooth: float,
    streams: int,
) -> Iterator[int]:
    """Put every frame through all stages, which work at once. Yields how many are written, after each."""

    def draw(frame: _Frame) -> _Drawn:
        return _drawn(frame, recorder.paths, overlay_side)

    with ExitStack() as stages:
        frames = stages.enter_context(closing(reader.frames()))
        if reader.live:  # no frame waits for the network, and what it has seen is written before the next is
            seen = stages.enter_context(closing(ordered_map(look, frames, streams, ahead=0)))
            steady = stages.enter_context(closing(_steady(seen, smooth)))
            done = ordered_map(lambda frame: recorder.write(draw(frame)), steady, 1, ahead=1)
        else:
            seen = stages.enter_context(closing(ordered_map(look, frames, streams)))
            steady = stages.enter_context(closing(_steady(seen, smooth)))
            drawn = stages.enter_context(closing(ordered_map(draw, steady, 2, ahead=1)))
            done = ordered_map(recorder.write, drawn, 1, ahead=1)
        yield from stages.enter_context(closing(done))


def _steady(frames: Iterable[_Frame], smooth: float) -> Generator[_Frame, None, None]:
    """Mark the first frame after every cut, and replace the maps by their running mean since the last one."""
    thumbnails: deque[np.ndarray] = deque(maxlen=3)
    last: _Frame | None = None
    for frame in frames:
        thumbnails.append(frame.thumbnail)
        if smoothing.is_cut(thumbnails):
            frame = replace(frame, cut=True)
        elif last is not None:
            seconds = float(frame.time - last.time)
            frame = replace(frame, focus=smoothing.blend(last.focus, frame.focus, seconds, smooth))
        last = frame
        yield frame


def _drawn(frame: _Frame, save: Collection[str], overlay_side: int) -> _Drawn:
    import av

    height, width = frame.image.shape[:2]
    pictures = {}
    if "map" in save:
        pictures["map"] = av.VideoFrame.from_ndarray(_grey(_even(frame.focus)), format="yuv420p")
    if "overlay" in save:
        overlay = _even(drawing.overlay(frame.image, frame.focus, overlay_side))
        rgb = av.VideoFrame.from_ndarray(overlay, format="rgb24")
        pictures["overlay"] = rgb.reformat(format="yuv420p", dst_colorspace="ITU709")
    scores = Scores.of(frame.focus, (height, width))
    return _Drawn(frame.number, frame.time, frame.duration, frame.cut, scores, pictures)


def _even(pixels: np.ndarray) -> np.ndarray:
    """Pixels [H, W] or [H, W, C] with even sides: the last row or column is repeated where one is odd."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2)) + ((0, 0),) * (pixels.ndim - 2), mode="edge")


def _grey(focus: np.ndarray) -> np.ndarray:
    """A map, float32 [H, W] with even sides, as the planes of yuv420p, uint8 [1.5 H, W]: black is 16 and white 235."""
    height, width = focus.shape
    planes = np.full((height * 3 // 2, width), 128, np.uint8)
    planes[:height] = np.rint(16 + 219 * np.clip(focus, 0, 1))
    return planes


class _Recorder:
    """The files that are written, and what is counted meanwhile. `write` is called by one thread at a time."""

    def __init__(self, paths: dict[str, Path], reader: _Reader, codec: str) -> None:
        self.paths = paths
        self.frames = 0
        self._reader, self._codec = reader, codec
        self._encoders: dict[str, _Encoder] = {}
        self._rows = paths["scores"].open("w", encoding="utf-8") if "scores" in paths else None
        self._cuts = 0
        self._in_focus = self._subject = 0.0
        self._start = self._end = Fraction(0)

    def write(self, drawn: _Drawn) -> int:
        """Write a frame. Returns how many are written."""
        for what, picture in drawn.pictures.items():
            if what not in self._encoders:
                self._encoders[what] = _Encoder(self.paths[what], self._codec, picture, self._reader)
            self._encoders[what].write(picture, drawn.time, drawn.duration)
        if self._rows:
            row = {"frame": drawn.number, "time": round(float(drawn.time), 6), "cut": drawn.cut}
            self._rows.write(json.dumps({**row, **drawn.scores.to_dict()}) + "\n")
        if not self.frames:
            self._start = drawn.time
        self._end = drawn.time + drawn.duration
        self._cuts += drawn.cut
        self._in_focus += drawn.scores.in_focus
        self._subject += drawn.scores.subject
        self.frames += 1
        return self.frames

    def close(self) -> None:
        """Complete the files."""
        for encoder in self._encoders.values():
            encoder.close()
        if self._rows:
            self._rows.close()

    def abandon(self) -> None:
        """Let go of the files, which are no good."""
        with suppress(Exception):
            self.close()

    def film(self, outputs: dict[str, Path], elapsed: float) -> Film:
        reader, seconds, most = self._reader, float(self._end - self._start), max(self.frames, 1)
        return Film(
            source=reader.name,
            outputs=outputs,
            frames=self.frames,
            dropped=reader.dropped,
            cuts=self._cuts,
            seconds=round(seconds, 6),
            frame_rate=round(float(reader.rate or (self.frames / seconds if seconds else 0)), 6),
            rotation=reader.rotation,
            width=reader.size[1],
            height=reader.size[0],
            in_focus=round(self._in_focus / most, 4) if self.frames else None,
            subject=round(self._subject / most, 4) if self.frames else None,
            frames_per_second=round(self.frames / elapsed, 3) if elapsed else 0.0,
            error=reader.error,
        )


def _encoder() -> str:
    """The encoder for films that libav has here."""
    import av

    for name in ENCODERS:
        with suppress(ValueError, LookupError, av.FFmpegError):
            if av.Codec(name, "w"):
                return name
    raise RuntimeUnavailable(
        f"this PyAV has no encoder for films ({', '.join(ENCODERS)}): install that of PyPI, pip install --force-reinstall av"
    )


class _Encoder:
    """A film that is being written."""

    def __init__(self, path: Path, codec: str, picture: Any, reader: _Reader) -> None:
        import av

        finest = 65535 if codec == "mpeg4" else 1_000_000  # the most ticks that MPEG-4 can count, and that anyone needs
        unit = reader.unit
        self._unit = unit if unit.denominator <= finest else Fraction(1, 60_000 if codec == "mpeg4" else finest)
        self._last = -1
        scale = str(self._unit.denominator)
        options = {"movflags": "+faststart", "movie_timescale": scale, "video_track_timescale": scale}
        rate = reader.rate or Fraction(25)
        self._container = av.open(str(path.absolute()), "w", format="mp4", options=options)
        stream: Any = self._container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
        context = stream.codec_context
        context.time_base = self._unit
        if reader.aspect:
            context.sample_aspect_ratio = reader.aspect
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # black is 16 and white 235
        context.max_b_frames = 0  # in any other order, mp4 cannot say how long the last frame is shown
        context.flags |= av.codec.context.Flags.frame_duration  # and this makes the encoder pass it on
        if codec == "libx264":
            stream.options = {"crf": "18", "preset": "veryfast"}
        else:
            context.bit_rate = min(int(picture.width * picture.height * rate / 4), 1 << 28)
        self._stream = stream

    def write(self, picture: Any, seconds: Fraction, duration: Fraction) -> None:
        picture.pts = self._last = max(round(seconds / self._unit), self._last + 1)
        picture.duration = max(round(duration / self._unit), 1)
        picture.time_base = self._unit
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()


@contextmanager
def _opened(source: str, limit: float | None) -> Iterator[_Reader]:
    """Open a source. Raises InputError if it cannot be read."""
    import av

    name, live = _PASSWORD.sub(r"//\1:***@", source), is_live(source)
    if not live and not Path(source).is_file():
        raise no_file(Path(source))
    address, options = _address(source)
    try:
        container = av.open(address, **options)
    except Exception as e:  # whatever a demuxer raises
        raise InputError(_refused(name, live, e)) from None
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & _ATTACHED_PICTURE:
            raise InputError(f"{name} has no video stream: name a film")
        if stream.codec_context is None:
            raise InputError(f"{name}: this PyAV has no decoder for it; convert it to H.264 first")
        yield (_Live if live else _Reader)(name, container, stream, limit)


_ATTACHED_PICTURE = 1 << 10
"""AV_DISPOSITION_ATTACHED_PIC: the cover of an album."""


def _address(source: str) -> tuple[str, dict[str, Any]]:
    """What av.open is given for a source."""
    if camera := _CAMERA.fullmatch(source):
        return _camera(int(camera[1]))
    if not is_live(source):
        only = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
        return str(Path(source).absolute()), {"container_options": only}
    # the sender's file header, which names what follows, comes every few seconds; packets that TCP brings are not lost
    options = {"rtsp_flags": "prefer_tcp", "analyzeduration": "3000000"}
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


class _Reader:
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
        self._last: _Frame | None = None
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

    def frames(self) -> Generator[_Frame, None, None]:
        """Every frame, upright and with its time, until the end or the limit."""
        with closing(self._pictures()) as pictures:
            for number, picture in enumerate(pictures):
                when, duration = self._timed(picture)
                if not self.live and self.limit is not None and float(when) >= self.limit:
                    return
                image = self._upright(picture)
                empty = np.empty((0, 0), np.float32)
                self._last = _Frame(number, when, duration, empty, empty, empty)
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
        """Say in `error` that the source is damaged here. A packet before the first frame is not: a recording may begin anywhere."""
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
        image = np.ascontiguousarray(_turned(image, matrix))
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


def _turned(image: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """An image, [H, W, C], as its display matrix says, to the nearest quarter of a turn."""
    a, b, c, d = matrix
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


class _Live(_Reader):
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
