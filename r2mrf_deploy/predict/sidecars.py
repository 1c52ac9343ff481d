"""XMP sidecars: a rating beside each photograph, as photo editors read it.

`IMG_1.xmp` beside a raw file (Adobe's way), `IMG_1.jpg.xmp` beside any other (darktable's and digiKam's). A sidecar that
another program has written or changed stays as it is.
"""

from __future__ import annotations

from pathlib import Path

from r2mrf_deploy import raw_photographs
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.predict.scores import Scores

TOOLKIT = "r2mrf-deploy"
"""What the sidecar says wrote it; a program that changes it puts its own name there."""
STARS = (0.2, 0.4, 0.6, 0.8)
"""The subject's sharpness from which a photograph has 2, 3, 4, 5 stars."""
_TEMPLATE = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="{toolkit}">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="{rating}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


def rating(scores: Scores) -> int:
    """1 to 5 stars for how sharp the subject is; in the region of interest, where one was given."""
    value = scores.subject if scores.roi is None else scores.roi
    return 1 + sum(value >= bound for bound in STARS)


def sidecar(photograph: Path) -> Path:
    """Where a photograph's sidecar lies."""
    raw = photograph.suffix.lower() in raw_photographs.SUFFIXES
    return photograph.with_suffix(".xmp") if raw else photograph.with_name(f"{photograph.name}.xmp")


def write(photograph: Path, scores: Scores) -> str:
    """Write a photograph's sidecar.

    Returns:
        Why it was not written: another program's is there. Empty if it was.

    Raises:
        ArtifactError: its folder cannot be written.
    """
    file = sidecar(photograph)
    if file.exists() and not _ours(file):
        return f"{file.name} is another program's, and stays as it is"
    write_atomically(file, _TEMPLATE.format(toolkit=TOOLKIT, rating=rating(scores)).encode())
    return ""


def _ours(file: Path) -> bool:
    with file.open("rb") as f:
        return f'x:xmptk="{TOOLKIT}"'.encode() in f.read(1024)
