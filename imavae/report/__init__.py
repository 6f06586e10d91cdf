"""Reports of runs and studies: the live display, tables, figures and the HTML page."""

import logging

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns when there is no home for its cache
