"""Whether a machine does what a benchmark takes for granted: checks, one finding each, and what was proven."""
