"""`python -m r2mrf_deploy.cli`."""

import sys

from r2mrf_deploy.cli import main

sys.exit(main())
