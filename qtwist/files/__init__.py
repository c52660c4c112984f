"""File formats, and the seam to the disk."""
