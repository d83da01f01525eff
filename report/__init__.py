"""Results to look at: pictures, the page, and the record of a run."""
