"""Density models of raw bytes of text, images and audio."""
