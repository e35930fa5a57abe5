"""llama-cpp-python's own server, with `use_extra_bufts` off as in the engine llamacpp: a script, run by the API tests.

`python -m llama_cpp.server` has no option for it, and with it on the server crashes on processors with AMX
(ggml-org/llama.cpp#20824).
"""

import llama_cpp.llama_cpp as library

plain = library.llama_model_default_params


def without_repacking():
    """The library's defaults, less repacked weights."""
    params = plain()
    params.use_extra_bufts = False
    return params


library.llama_model_default_params = without_repacking

if __name__ == "__main__":
    from llama_cpp.server.__main__ import main

    main()
