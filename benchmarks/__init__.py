"""What the sanitizer costs: `python -m benchmarks cost|memory|training`."""
