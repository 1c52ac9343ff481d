"""Web pages, `index.html`: what the page has to know, the contract too, stands in it in a block of JSON."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from r2mrf_deploy.errors import ArtifactError, reading
from r2mrf_deploy.files import document
from r2mrf_deploy.formats import Content
from r2mrf_deploy.manifest import LARGEST, Contract
from r2mrf_deploy.web import START, Site

_END = b"</script>"


def read(path: Path) -> Content:
    """Read what a page says of its artifact. Nothing of it runs.

    Raises:
        ArtifactError: the file is not a page of this package, or is damaged.
    """
    with reading(path, ArtifactError, "is not a page of r2mrf, or is damaged", "export it again"):
        content = document(path)
        _, start, rest = content.partition(START)
        block, end, _ = rest.partition(_END)
        if not start or not end:
            raise ValueError("it says nothing of an artifact")
        if len(block) > 2 * LARGEST:
            raise ValueError("what it says is too large")
        fields = json.loads(block)
        contract = Contract.parse(json.dumps(fields["contract"]), f"{path} is damaged: the contract inside")
        try:
            site = Site.model_validate_json(block)
        except ValidationError as e:
            first = e.errors(include_url=False, include_input=False, include_context=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return Content(contract, site)
