"""Two copies of the library in one process, which know nothing of one another:
copies.py LIBRARY COPY STORE"""

import ctypes
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples/python"))
from ctypes_route import Router

first, second, store = sys.argv[1:]
routers = [Router(library, store, device="cpu", threads=1) for library in (first, second)]
functions = [router._lib.hubrouter_router_route for router in routers]
addresses = [ctypes.cast(function, ctypes.c_void_p).value for function in functions]
assert addresses[0] != addresses[1], addresses
answers = [router.route("Who is speaking?", 3)["ranked"] for router in routers]
assert answers[0] == answers[1], answers
routers[0].close()
assert routers[1].route("Who is speaking?", 3)["ranked"] == answers[0]
routers[1].close()
print("two copies, the same answers")
