"""Files that anybody may have written: opened without waiting, read within bounds."""
