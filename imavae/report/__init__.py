"""Reports of runs and studies: the live display, tables, figures and the HTML page."""
