"""Reads a topic for one group: lanes, offsets, fences, parked cases."""
