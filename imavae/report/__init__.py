"""What a person sees of a run or a study: the live display, the tables and the figures."""
