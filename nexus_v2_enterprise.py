"""The name under which AEON imports the daemon: `from nexus_v2_enterprise import UniversalDaemon, SecurityContext`."""

import os
import sys

sys.path.append(os.path.dirname(os.path.realpath(__file__)))  # where nexusd lies beside us

from nexusd.daemon import UniversalDaemon
from nexusd.domain.access import SecurityContext
from nexusd.rpc.call import CallFailed, CallRefused

__all__ = ["CallFailed", "CallRefused", "SecurityContext", "UniversalDaemon"]
