"""An example of what another package can add to r2mrf-deploy: a network in one file, and a format in one file."""
