"""Fewer operations within an error: low-rank convolutions, and channels left out, fitted to what photographs send through.

`moments` observes a graph, `low_rank` and `channels` say what could be changed in it and how large the error would be, and
`changes` makes a choice of changes in a copy. Nothing here decides what is worth it: that is `r2mrf_deploy.compression`.
"""
