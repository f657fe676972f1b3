"""Programs: what a rule comes to, before any backend makes it run."""
