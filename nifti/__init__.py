"""NIfTI files from other software: volumes, masks, folders of a study."""
