"""Processes that stand for servers: what runs in them, and how the suite talks to them."""
