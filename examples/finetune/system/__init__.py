"""Files that are replaced atomically, and the processes of a run."""
