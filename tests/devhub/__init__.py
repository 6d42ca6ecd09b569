"""Tests of the local Hub."""
