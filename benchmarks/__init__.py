"""Speed, measured beside the alternatives that a user has: `python -m benchmarks`."""
