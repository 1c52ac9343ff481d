"""Web pages, run by a browser: a small server (`site`), Chromium (`browser`), and the runner that drives a page in it."""
