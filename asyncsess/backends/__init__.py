"""Where sessions are kept: one module a kind of storage, behind the seam in `base`."""
