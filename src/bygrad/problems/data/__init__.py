"""Labelled images: the embedded ones, local files, and downloads when asked for."""

from .images import ImageData, load_images, shrink

__all__ = ["ImageData", "load_images", "shrink"]
