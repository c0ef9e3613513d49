"""The public names, each with the module that defines it; read at run time too."""

from implicitcore_triton.backend import TritonBackend as TritonBackend
