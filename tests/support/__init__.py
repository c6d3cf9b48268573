"""Helpers of the tests that cross packages: memory with known content, engines that drive rooms, rank processes."""
