"""Ranks models for prompts through the C interface, without a package:

    python3 examples/python/ctypes_route.py LIBRARY STORE PROMPT...
"""

import ctypes
import json
import sys
from ctypes import POINTER, byref, c_char_p, c_int32, c_size_t, c_void_p

TOO_SMALL = 100


class RouterError(Exception):
    """A status other than 0: `status` has the number, `kind` its name."""

    def __init__(self, status, kind, message):
        super().__init__(f"{kind}: {message}")
        self.status, self.kind = status, kind


class Router:
    """May be used by several threads at once: ctypes releases the GIL during a call."""

    def __init__(self, library, store, **options):
        self._lib = ctypes.CDLL(library)
        self._declare()
        store, text = store.encode(), json.dumps(options).encode()
        self._handle = c_void_p()
        self._call("router_open", store, len(store), text, len(text), byref(self._handle))

    def _declare(self):
        text, out = [c_char_p, c_size_t], POINTER(c_void_p)
        buffer = [c_void_p, c_size_t, POINTER(c_size_t)]
        for name, arguments in {
            "router_open": [*text, *text, out],
            "router_route": [c_void_p, *text, c_size_t, c_void_p, out],
            "router_json": [c_void_p, *buffer],
            "policy_compile": [c_void_p, *text, out],
            "decision_json": [c_void_p, *buffer],
        }.items():
            function = getattr(self._lib, f"hubrouter_{name}")
            function.argtypes, function.restype = [*arguments, out], c_int32
        for name in ["router", "policy", "decision", "error"]:
            function = getattr(self._lib, f"hubrouter_{name}_free")
            function.argtypes, function.restype = [c_void_p], None
        self._lib.hubrouter_error_message.argtypes = [c_void_p]
        self._lib.hubrouter_error_message.restype = c_char_p
        self._lib.hubrouter_status_name.argtypes = [c_int32]
        self._lib.hubrouter_status_name.restype = c_char_p

    def _call(self, name, *arguments):
        error = c_void_p()
        status = getattr(self._lib, f"hubrouter_{name}")(*arguments, byref(error))
        if status == 0:
            return
        kind = self._lib.hubrouter_status_name(status).decode()
        message = self._lib.hubrouter_error_message(error).decode()
        self._lib.hubrouter_error_free(error)
        raise RouterError(status, kind, message)

    def _json(self, name, handle):
        length = c_size_t()
        self._call(name, handle, None, 0, byref(length))
        while True:
            buffer = ctypes.create_string_buffer(length.value)
            try:
                self._call(name, handle, buffer, len(buffer), byref(length))
            except RouterError as error:
                # Another thread has installed a generation with a longer text.
                if error.status != TOO_SMALL:
                    raise
            else:
                return json.loads(buffer.raw[: length.value])

    def about(self):
        """Generation, device, precision and so on, as a dict."""
        return self._json("router_json", self._handle)

    def compile(self, policy):
        """The handle of a policy, which is a dict."""
        text, handle = json.dumps(policy).encode(), c_void_p()
        self._call("policy_compile", self._handle, text, len(text), byref(handle))
        return handle

    def free_policy(self, policy):
        self._lib.hubrouter_policy_free(policy)

    def route(self, prompt, top=10, policy=None):
        """The decision as a dict, the same as that of `hubrouter route --json`."""
        text, decision = prompt.encode(), c_void_p()
        self._call("router_route", self._handle, text, len(text), top, policy, byref(decision))
        try:
            return self._json("decision_json", decision)
        finally:
            self._lib.hubrouter_decision_free(decision)

    def close(self):
        self._lib.hubrouter_router_free(self._handle)
        self._handle = c_void_p()


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    library, store, *prompts = sys.argv[1:]
    router = Router(library, store, device="cpu", threads=1)
    print(router.about()["generation"])
    for prompt in prompts:
        for model in router.route(prompt, top=3)["ranked"]:
            print(f"{100 * model['probability']:6.2f} %  {model['model']} ({model['domain']})")
    policy = router.compile({"candidates": ["gpt2", "google/flan-t5-xxl"]})
    print("of two:", router.route(prompts[0], 1, policy)["ranked"][0]["model"])
    router.free_policy(policy)
    try:
        router.route("")
    except RouterError as error:
        print(f"status {error.status}, {error}")
    router.close()


if __name__ == "__main__":
    main()
