"""Small modules that several stories use. Each rings $BELL when there is something to know."""

from tests.running_nexus import INTERPRETER

SLEEPER = "#!/bin/sh\nexec sleep 1000\n"

# Ready at once; ends with the status that comes through the gate, by that signal if it is below 0.
OBEDIENT = (
    INTERPRETER
    + """
import os
with open(os.environ["BELL"], "a") as bell:
    print("pid", os.getpid(), file=bell)
said = int(os.read(os.open(os.environ["GATE"], os.O_RDONLY), 100))
if said < 0:
    os.kill(os.getpid(), -said)
os._exit(said)
"""
)

# Says READY=1 once the gate opens, and rings when it has said so.
READY_LATER = (
    INTERPRETER
    + """
import os, signal, socket
def ring(text):
    with open(os.environ["BELL"], "a") as bell:
        bell.write(text + chr(10))
ring("begun")
os.read(os.open(os.environ["GATE"], os.O_RDONLY), len("go") + 1)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1" + bytes([10]) + b"STATUS=open for business", os.environ["NOTIFY_SOCKET"])
ring("ready")
signal.pause()
"""
)

# The same as a Python module; it rings when it has begun, and never again.
READY_LATER_IN_PYTHON = """
import asyncio, os
from nexusd.sdk import Module
class It(Module):
    async def start(self):
        with open(os.environ["BELL"], "a") as bell:
            print("begun", file=bell)
        await asyncio.to_thread(lambda: open(os.environ["GATE"]).read(1))
"""

# Does not end on SIGTERM before the gate opens.
RELUCTANT = """#!/bin/sh
trap 'echo asked >> "$BELL"; read -r _ < "$GATE"; exit 0' TERM
echo begun >> "$BELL"
while :; do sleep 1000 & wait $!; done
"""

# Nothing but SIGKILL ends it or its child.
DEAF = """#!/bin/sh
trap '' TERM
sleep 1000 &
echo "$$ $!" >> "$BELL"
while :; do wait $!; done
"""

# Writes numbered lines until it is told to stop, then how many there were.
COUNTER = (
    INTERPRETER
    + """
import os, signal, sys, time
going = True
def stop(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, stop)
number = 0
while going:
    os.write(1, b"line %d\\n" % number)
    number += 1
    time.sleep(0.0005)
os.write(1, b"end %d\\n" % number)
"""
)

# A Python module that reads its values, starts when it is let, and rings with each value that it is told.
TOLD_LATE = """
import os
from nexusd.sdk import Module
class It(Module):
    async def start(self):
        self.ring("begun")
        os.read(os.open(os.environ["GATE"], os.O_RDONLY), len("go") + 1)
    async def configure(self, key, value):
        self.ring(f"{key} {value}")
    def ring(self, text):
        with open(os.environ["BELL"], "a") as bell:
            print(text, file=bell)
"""
TOLD_LATE_KEYS = """
[config.rate]
type = "int"
default = 1
apply = "live"
"""
