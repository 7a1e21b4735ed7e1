"""Speed beside other libraries, as ratios: `python -m benchmarks`. No part of the package."""
