"""The records of the rows that predict is asked, part by part: made in this process, or by workers."""
