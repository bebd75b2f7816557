"""Simulated shards: a stand-in for pfsspec files, for demonstrations, tests and benchmarks."""

from pipeline.simulate.sample import SampleSummary, write_sample
from pipeline.simulate.spec import SampleSpec

__all__ = ["SampleSpec", "SampleSummary", "write_sample"]
