"""The comparison of methods at equal budgets: trials that choose each method's settings on held-out training
questions, and what each gives with them.
"""
