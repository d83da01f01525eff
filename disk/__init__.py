"""Files on disk: whole files and locks, filters, folders of results, tables of figures."""
