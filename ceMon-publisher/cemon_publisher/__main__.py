import sys

from cemon_publisher.cli import main

sys.exit(main())
