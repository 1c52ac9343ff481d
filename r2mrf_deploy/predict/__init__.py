"""`r2mrf predict`: photographs and films become files of maps, overlays, contours and scores.

`sources` finds photographs, `photographs` makes their files (`outputs`, `scores`, `sidecars`; with `tiles`, at full
resolution) and keeps a `journal`, `summaries` makes tables of that, and `film` does the same for moving pictures. `cluster`
spreads photographs over many machines: `parts` is what it keeps on disk, and `workers` is what they do.
"""

from r2mrf_deploy.predict.outputs import Outputs
from r2mrf_deploy.predict.photographs import Prediction, predict
from r2mrf_deploy.predict.sources import Sources
from r2mrf_deploy.predict.stores import Source

__all__ = ["Outputs", "Prediction", "Source", "Sources", "predict"]
