"""One piece of work inside a worker: train, evaluate, bench; from a job to records."""
