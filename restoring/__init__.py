"""Everything that is done with learned filters."""
