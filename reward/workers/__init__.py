"""Processes that run one function under a hard deadline for each job."""
