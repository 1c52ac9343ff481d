"""`r2mrf predict clip.mp4 camera:0 rtsp://...`: a film, a camera or a stream becomes films of maps and overlays.

Reading, the network, drawing and encoding overlap, and only a few frames are in memory at once, however long the film is. Of
a live source only the newest frame is kept: what comes while the network is busy is dropped, and counted.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import drawing
from r2mrf_deploy.concurrency import ordered_map
from r2mrf_deploy.errors import InputError, RuntimeUnavailable, UsageError, did_you_mean
from r2mrf_deploy.files import flush, refuse_unwritable, staging
from r2mrf_deploy.predict import smoothing
from r2mrf_deploy.predict.footage import Frame, Reader, opened
from r2mrf_deploy.predict.scores import Scores
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import Interrupted, Progress, ProgressCallback, silent
from r2mrf_deploy.wording import count

OUTPUTS = {"map": "_map.mp4", "overlay": "_overlay.mp4", "scores": "_scores.jsonl"}
"""What can be saved, and how its file's name ends."""
ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""The first of these that libav has here is used. All others of H.264 need hardware, or are not there at all."""


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

    def look(frame: Frame) -> Frame:
        return replace(frame, focus=predictor(frame.image), thumbnail=smoothing.thumbnail(frame.image))

    with opened(source, limit) as reader, staging(next(iter(paths.values()))) as folder:
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
    reader: Reader,
    look: Callable[[Frame], Frame],
    recorder: _Recorder,
    overlay_side: int,
    smooth: float,
    streams: int,
) -> Iterator[int]:
    """Put every frame through all stages, which work at once. Yields how many are written, after each."""

    def draw(frame: Frame) -> _Drawn:
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


def _steady(frames: Iterable[Frame], smooth: float) -> Generator[Frame, None, None]:
    """Mark the first frame after every cut, and replace the maps by their running mean since the last one."""
    thumbnails: deque[np.ndarray] = deque(maxlen=3)
    last: Frame | None = None
    for frame in frames:
        thumbnails.append(frame.thumbnail)
        if smoothing.is_cut(thumbnails):
            frame = replace(frame, cut=True)
        elif last is not None:
            seconds = float(frame.time - last.time)
            frame = replace(frame, focus=smoothing.blend(last.focus, frame.focus, seconds, smooth))
        last = frame
        yield frame


def _drawn(frame: Frame, save: Collection[str], overlay_side: int) -> _Drawn:
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

    def __init__(self, paths: dict[str, Path], reader: Reader, codec: str) -> None:
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

    def __init__(self, path: Path, codec: str, picture: Any, reader: Reader) -> None:
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
