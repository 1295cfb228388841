"""To import this, first, stops the collector of cycles while a service imports the rest.

A quarter to a half of the time of an import goes into looking for cycles in what lives as long as
the process does. The runtime lets the collector look again once the service serves.
"""

import gc

gc.disable()
