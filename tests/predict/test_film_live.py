"""Cameras and streams: only the newest frame waits, what is lost is counted, and a dead one is an error soon."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy.errors import InputError
from r2mrf_deploy.predict import footage
from r2mrf_deploy.progress import Interrupted, Progress
from tests.predict.films import (
    av,
    brightness,
    clip,
    picture,
    read,
    rows,
    run,
    times,
    unopened,
    write,
)


class Sender:
    """Sends a film over TCP as a camera does, frame by frame, to the first who connects."""

    def __init__(self, count: int) -> None:
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._door.getsockname()[1]}"
        self.sent, self.ended = 0, float("inf")
        self._thread = threading.Thread(target=self._send, args=(count,), daemon=True)
        self._thread.start()

    def _frames(self, count: int) -> Iterator[np.ndarray]:
        for number in range(count):
            self.sent = number + 1
            yield picture(number)

    def _send(self, count: int) -> None:
        line, _ = self._door.accept()
        with (
            self._door,
            line,
            suppress(OSError, av.FFmpegError),
            line.makefile("wb", buffering=0) as out,
        ):  # the receiver may leave
            write(out, self._frames(count), real_time=True, format="mpegts")
        self.ended = time.monotonic()

    def wait(self) -> None:
        self._thread.join(20)


def slow(image: np.ndarray) -> np.ndarray:
    time.sleep(0.15)  # at 25 frames in a second, three of four are dropped
    return brightness(image)


def test_only_the_newest_frame_waits_for_the_network() -> None:
    live = footage.Live("a", *unopened(), None)
    soon = time.monotonic() + 60
    live._keep(["first", "second", "third"])
    assert live._take(soon) == "third" and live.dropped == 2
    live._keep(["fourth"])
    assert live._take(soon) == "fourth" and live.dropped == 2
    assert live._take(time.monotonic() + 0.05) is None


def test_a_stream_that_is_too_fast_loses_frames_and_no_time(tmp_path: Path) -> None:
    sender = Sender(75)
    found = run(sender.address, tmp_path, slow)
    assert time.monotonic() - sender.ended < 5  # all 75 would take 11
    sender.wait()
    assert found.frames + found.dropped == 75 == sender.sent  # TCP loses nothing, and the first frame is a whole one
    assert 3 <= found.frames < 40 and found.error is None
    seen = [round(row["time"] * 25) for row in rows(found)]
    assert seen[0] == 0 and min(np.diff(seen)) >= 1
    assert times(found.outputs["map"]) == [Fraction(n, 25) for n in seen]
    assert found.frame_rate == 25.0 and (found.width, found.height) == (64, 48)


def test_a_limit_ends_a_stream(tmp_path: Path) -> None:
    sender = Sender(250)
    start = time.monotonic()
    found = run(sender.address, tmp_path, slow, limit=1.0, smooth=0.2)
    assert time.monotonic() - start < 9  # the stream lasts 10; opening takes up to 3 seconds
    assert 1 <= found.frames <= 9 and found.error is None
    assert len(read(found.outputs["overlay"])[0]) == found.frames


def test_ctrl_c_ends_a_stream_with_films_that_play(tmp_path: Path) -> None:
    def stops(progress: Progress) -> None:
        if progress.done == 4:
            raise KeyboardInterrupt

    sender = Sender(250)
    with pytest.raises(Interrupted) as interrupted:
        run(sender.address, tmp_path, slow, progress=stops)
    assert interrupted.value.done.frames >= 4
    assert len(read(interrupted.value.done.outputs["map"])[0]) == interrupted.value.done.frames


@pytest.mark.parametrize("scheme", ["rtsp", "tcp"])
def test_a_dead_address_is_an_error_at_once(tmp_path: Path, scheme: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(InputError, match="cannot be opened") as refusal:
        run(f"{scheme}://me:secret@127.0.0.1:{port}/live", tmp_path)
    assert "secret" not in str(refusal.value) and "me:***@127.0.0.1" in str(refusal.value)


def test_an_address_that_says_nothing_is_an_error_within_ten_seconds(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # connections are taken, and nothing is sent
        start = time.monotonic()
        with pytest.raises(InputError, match="no answer"):
            run(f"tcp://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
    assert time.monotonic() - start < 10


@pytest.mark.skipif(not Path("/dev").is_dir(), reason="needs Linux's names of cameras")
def test_a_camera_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no camera 99 \(/dev/video99\)"):
        run("camera:99", tmp_path)


def test_inputs_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    assert all(map(footage.is_film, ("a.mp4", "b/C.MOV", "x.mkv", "camera:0.avi")))
    assert not any(
        map(footage.is_film, ("a.jpg", "mp4", "rtsp://host/a.mp4", "http://host/a.mp4", str(tmp_path / "folder.mp4")))
    )
    assert all(
        map(
            footage.is_live,
            ("camera:0", "camera:12", "rtsp://h/x", "RTSPS://h", "udp://@:1234", "srt://h:1", "tcp://h:1"),
        )
    )
    assert not any(map(footage.is_live, ("camera:", "camera:0.mp4", "xrtsp://h", "http://h", "rtsp:/h", "a.mp4")))
    assert footage.called("rtsp://me:secret@10.0.0.1:554/live/1?key=secret") == "10_0_0_1_554_live_1"
    assert footage.called("camera:3") == "camera_3" and footage.called("a/b.mp4") == "a/b.mp4"


def test_a_summary_says_what_was_dropped(tmp_path: Path) -> None:
    found = run(clip(tmp_path, 2), tmp_path)
    assert (
        replace(found, frames_per_second=24.96, dropped=3, cuts=1).summary()
        == "2 frames, 3 dropped, 1 cut, 25.0 per second"
    )
