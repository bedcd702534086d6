"""Short recipes that `harness search` chose, the same search for each method: by data set of choice and method the
settings in which they differ from the own recipe. No torch is imported here.
"""

from typing import Any

TUNED_ON = "tuned_on_"
TUNED: dict[str, dict[str, dict[str, Any]]] = {}
