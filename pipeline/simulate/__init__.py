"""Simulated shards: a stand-in for pfsspec files, for demonstrations, tests and benchmarks."""

from pipeline.simulate.sample import SampleSpec, SampleSummary, is_sample, write_sample

__all__ = ["SampleSpec", "SampleSummary", "is_sample", "write_sample"]
