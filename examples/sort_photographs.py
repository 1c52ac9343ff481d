"""Sort a folder of photographs by how sharp their subject is, in Python.

    python examples/sort_photographs.py PHOTOGRAPHS -o out/sorted

It prints the sharpest first, and makes a folder of links to the photographs, named in that order. Nothing is moved.
`r2mrf predict PHOTOGRAPHS --report sheet.html` does the same with a page to look at them, and goes on after an interruption.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from r2mrf_deploy import Predictor, images, weights
from r2mrf_deploy.errors import InputError
from r2mrf_deploy.predict.scores import Scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="a folder")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/sorted"), help="the folder of links to make")
    parser.add_argument("--model", type=Path, default=None, help="an artifact (default: the r2mrf-lite in the package)")
    given = parser.parse_args()
    found = scores(given.photographs, given.model or weights.artifact(weights.DEFAULT))
    ranked = sorted(found.items(), key=lambda item: item[1].subject, reverse=True)
    given.output.mkdir(parents=True, exist_ok=True)
    for old in given.output.glob("[0-9][0-9][0-9][0-9]-*"):
        if old.is_symlink():
            old.unlink()
    for place, (path, score) in enumerate(ranked, 1):
        print(
            f"{place:4} subject {score.subject:.2f}  in focus {100 * score.in_focus:3.0f} %  {score.verdict:11}  {path.name}"
        )
        link = given.output / f"{place:04}-{score.subject:.2f}-{path.name}"
        link.symlink_to(path.resolve())


def scores(folder: Path, model: Path) -> dict[Path, Scores]:
    """The scores of every photograph in a folder; one that cannot be read is named and left out."""
    found = {}
    with Predictor.open(model) as predictor:
        for path in images.find([folder]):
            try:
                photograph = images.read(path)
            except InputError as e:
                print(f"left out: {e}")
                continue
            found[path] = Scores.of(predictor(photograph), photograph.shape[:2])
    return found


if __name__ == "__main__":
    main()
