"""Files and folders of ensembles and runs: whole-or-nothing writes, layout, schema, locks and where a result
comes from.
"""
