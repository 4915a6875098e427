"""`/v1/completions` and `/v1/chat/completions`: text, whole or token by token, each token with its
uncertainty.
"""
