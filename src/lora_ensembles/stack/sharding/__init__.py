"""A base that lies over several ranks: how it is cut, and which part of the members each rank holds."""
