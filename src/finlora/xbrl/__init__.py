"""Filings become facts, and facts become items that cannot be answered without them."""
