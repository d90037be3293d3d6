"""Compress a checkpoint: the plan of a run, what is measured for it, and the run itself."""
