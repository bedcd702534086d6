"""`dskd.load`: the one name here that knows of `harness`, which trained the models that it loads.

Whoever has a trained model looks for it where the models are. Nothing else of this package imports this module, so the
methods can be used without runs, records and data sets.
"""

from harness.predict.model import load as load
