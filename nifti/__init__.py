"""NIfTI files that others write: volumes, masks, folders of a study."""
