"""Books, captions and control in the text. Nothing here is remote code."""
