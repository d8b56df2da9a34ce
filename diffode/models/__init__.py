"""Models from files: by name (pretrained), and what is known of each (card)."""
