"""Progress, and silence for libraries."""

from __future__ import annotations

import logging
import sys
import threading
import warnings

import pytest

from r2mrf_deploy.progress import quiet


def test_quiet_silences_libraries_and_not_the_program_around_them(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with quiet():
        print("chatter")
        warnings.warn("chatter", stacklevel=1)
        logging.getLogger("torch.onnx").warning("chatter")
        logging.getLogger("onnxscript.optimizer").info("chatter")
        logging.getLogger("torch").error("broken")
        logging.getLogger("application").warning("heard")
    assert capsys.readouterr().out == ""
    assert [record.message for record in caplog.records] == ["broken", "heard"]


def test_quiet_in_threads_that_end_in_another_order_leaves_no_silence() -> None:
    """The first enters first and leaves last; without turns, the second would restore the first's silence."""
    stream, level = sys.stdout, logging.getLogger("torch").level
    entered, go = threading.Event(), threading.Event()

    def first() -> None:
        with quiet():
            entered.set()
            go.wait(10)

    def second() -> None:
        entered.wait(10)
        threading.Timer(0.2, go.set).start()
        with quiet():
            threads[0].join(10)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sys.stdout is stream and logging.getLogger("torch").level == level


def test_quiet_hides_no_exception() -> None:
    with pytest.raises(ValueError, match="broken"), quiet():
        raise ValueError("broken")
