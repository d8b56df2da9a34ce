"""What experiments and commands share: commands, rows of results, figures, Markdown."""
