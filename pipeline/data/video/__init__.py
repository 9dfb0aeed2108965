"""Faces in videos, as motion of a head."""
