"""Probes, baselines and tables: how a bundle is judged on people it never saw."""
