"""Tables and figures of Kang, Wang & Xiong (arXiv 2411.00786), measured again: `python -m benchmarks.paper -h`."""
