"""Shared ground: types, tree mathematics, safe numerics, files and result codes."""
