"""The questions that a run answers, one folder each.

A question takes moments, models and test spectra, and gives its part of the tables, of the figures and of the page.
"""
