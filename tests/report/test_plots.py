"""Plots show outside text as it is."""

from __future__ import annotations

import pytest

from r2mrf_deploy.report import plots


@pytest.mark.parametrize("name", ["a$b$c.onnx", "$", "_hidden.onnx", "\x1b[31m$x_{", "a[red]b"])
def test_a_name_in_a_legend_is_neither_a_formula_nor_hidden(name: str) -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, axis = plt.subplots()
    axis.plot([1, 2], label=plots._label(name))
    (shown,) = axis.legend().get_texts()
    figure.canvas.draw()  # a broken formula raises here
    assert shown.get_text().replace(r"\$", "$").strip() == name.replace("\x1b", r"\x1b")
    plt.close(figure)
