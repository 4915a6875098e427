"""Text that ensembles write on request: sampling, jobs, and engines that compute many requests together."""
