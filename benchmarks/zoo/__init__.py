"""Real architectures with small random configurations, built here and by hand.  `run.py` is the script."""
