"""What the authors' own networks compute, kept so that importers are held to it."""
