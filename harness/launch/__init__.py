"""Many runs: jobs, the order of them, the supervisor, its channel to the workers, the worker process."""
