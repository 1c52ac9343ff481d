"""Progress, and silence for libraries."""

from __future__ import annotations

import logging
import sys
import threading
import warnings

import pytest

from r2mrf_deploy.progress import no_stdout, quiet, unwarned, without_threads


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


def test_threads_drop_warnings_together_and_give_them_back() -> None:
    """Whoever ends last restores the filters, which `warnings.catch_warnings` in several threads does not."""
    first, second, before = threading.Event(), threading.Event(), list(warnings.filters)

    def earlier() -> None:
        with unwarned():
            first.set()
            second.wait(timeout=30)

    thread = threading.Thread(target=earlier)
    thread.start()
    first.wait(timeout=30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
    with unwarned():
        second.set()
        thread.join()
        warnings.warn("nobody sees this", stacklevel=1)
    assert list(warnings.filters) == before


def test_what_some_threads_print_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    """While the others print as before, also where a library is silenced in between."""
    with without_threads("loud"):
        for name in ("loud one", "ours"):
            thread = threading.Thread(target=print, args=(name,), name=name)
            thread.start()
            thread.join()
        with no_stdout():
            print("library")
    print("after")
    assert capsys.readouterr().out == "ours\nafter\n"
