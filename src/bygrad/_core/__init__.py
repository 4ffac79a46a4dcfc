"""Shared ground: types, tree mathematics, random draws, compiled programs, files, hosts and result codes."""
