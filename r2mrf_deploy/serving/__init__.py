"""Serving: model repositories for inference servers, what Triton's python backend runs of them, and starting a server.

`repository` writes a repository. For Triton, `triton` makes the configs, `triton_files` the folders, and `checks` reads them
back; `ovms` makes what OpenVINO Model Server takes. `pipeline` holds the two ends of what is served, and `models` is what
Triton runs. `server` starts a server that is installed here.
"""
