"""A table in Markdown and LaTeX: outside text stays text there too, and compiles."""

from __future__ import annotations

from rich.text import Text

from r2mrf_deploy.report import forms
from r2mrf_deploy.report.screen import Sheet

NAME = r"a_b|c$50%&#{x}~^[l](u)*\\"


def sheet() -> Sheet:
    table = Sheet("map", numbers=("Δ", "f_max"), spare=("f_max",))
    table.add(NAME, "0.1", Text("0.9000", "bold"))
    return table


def test_markdown_keeps_every_column_and_escapes_its_signs() -> None:
    head, rules, row = forms.markdown(sheet()).splitlines()
    assert head == r"| map | Δ | f\_max |" and rules == "| --- | ---: | ---: |"
    assert row == r"| a\_b\|c$50%&\#\{x\}~^\[l\](u)\*\\\\ | 0.1 | 0.9000 |"


def test_latex_has_booktabs_rules_the_best_in_bold_and_no_sign_of_its_own_from_outside() -> None:
    assert forms.latex(sheet()).splitlines() == [
        r"\begin{tabular}{lrr}",
        r"  \toprule",
        r"  map & $\Delta$ & f\_max \\",
        r"  \midrule",
        r"  a\_b|c\$50\%\&\#\{x\}\textasciitilde{}\textasciicircum{}{[}l{]}(u)*\textbackslash{}\textbackslash{}"
        r" & 0.1 & \textbf{0.9000} \\",
        r"  \bottomrule",
        r"\end{tabular}",
    ]
