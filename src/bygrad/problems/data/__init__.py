"""Labelled images: the embedded ones, local files, and downloads when asked for."""

from .images import ImageData, load_images

__all__ = ["ImageData", "load_images"]
