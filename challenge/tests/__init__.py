"""Tests of the service, its scripts and the data they use."""
