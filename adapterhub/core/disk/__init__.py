"""Files and folders of the system, read and written with care."""
