"""Books, captions and markup in texts. This package is not remote code."""
