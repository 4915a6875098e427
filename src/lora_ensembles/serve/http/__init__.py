"""The HTTP side of the server; nothing of it is imported before the packages of the extra `serve` are known
to be there.
"""
