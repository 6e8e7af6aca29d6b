"""Fixtures for all tests."""

pytest_plugins = ["small_world"]
