"""python -m vmjob, and the entry of vmjob.pyz."""

import sys

from vmjob.cli.main import main

sys.exit(main())
