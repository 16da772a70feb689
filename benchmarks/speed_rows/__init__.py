"""The rows of the speed table, by what they measure; `benchmarks/speed.py` prints them."""
