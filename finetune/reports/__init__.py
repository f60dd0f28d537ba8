"""Pages, figures and cards: how what was found is told."""
