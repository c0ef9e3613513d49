"""The public names, each with the module that defines it; read at run time too."""

from implicitcore_cpp.backend import CppBackend as CppBackend
