"""Presentation of results: pictures, HTML pages, and the record of a run."""
