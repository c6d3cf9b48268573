"""Tests that take minutes: each is a module with a command line (see the Makefile), and has a short sample in `make test`."""
