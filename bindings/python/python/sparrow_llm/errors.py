"""What can go wrong: a class for each error of the library, and those of tensors and calls.

All are `SparrowError`. Each is also the built-in exception that Python users would expect, so that `except ValueError` and
`except OSError` work. Messages say what was expected, what was found, and what to do.
"""

from __future__ import annotations


class SparrowError(Exception):
    """Every error of this package."""


class LoadError(SparrowError, OSError):
    """The files of a model cannot be used."""


class FileError(LoadError):
    """A file could not be read or written."""


class DamagedFileError(LoadError):
    """A file is something else than its name says: what downloads leave behind."""


class ConfigError(LoadError, ValueError):
    """A JSON file is malformed, or one of its fields has a value that cannot be used."""


class SafetensorsError(LoadError, ValueError):
    """A safetensors file, or the index over several, is malformed."""


class GgufError(LoadError, ValueError):
    """A GGUF file is malformed, or describes what is not supported."""


class TensorError(LoadError, ValueError):
    """A tensor is missing, or is not what the configuration calls for."""


class SidecarError(LoadError, ValueError):
    """`sparrow.json` does not fit the model beside it."""


class TokenizerError(SparrowError, ValueError):
    """The tokenizer could not be loaded, or refused a text."""


class TemplateError(SparrowError, ValueError):
    """A chat template is missing, malformed, fails, or refuses a conversation."""


class ContextLengthError(SparrowError, ValueError):
    """More tokens than the model, or the session, has room for."""


class NotFiniteError(SparrowError, ArithmeticError):
    """The model's numbers became NaN or infinite."""


class OutOfMemoryError(SparrowError, MemoryError):
    """More memory than there is."""


class OptionError(SparrowError, ValueError):
    """An option has a value that cannot be used."""


class HubError(SparrowError, OSError):
    """The model hub could not be used."""


class Cancelled(SparrowError):
    """The work was cancelled by another thread."""


class ForkError(SparrowError, RuntimeError):
    """The process was forked after its threads were started: load the model after the fork, or start processes by spawn."""


class ReentrantCallError(SparrowError, RuntimeError):
    """An engine was called from inside of its own callback."""


class ClosedError(SparrowError, RuntimeError):
    """An engine was used after `close`."""


class InternalError(SparrowError, RuntimeError):
    """An error in Sparrow itself."""


class ShapeError(SparrowError, ValueError):
    """A tensor has another shape, or other strides, than an operator takes."""


class DTypeError(SparrowError, TypeError):
    """A tensor has another element type than an operator takes."""


class DeviceError(SparrowError, ValueError):
    """A tensor is on, or a model is wanted on, a device that Sparrow does not compute on."""


class GradientError(SparrowError, RuntimeError):
    """A gradient is wanted of an operator that has none."""


class UnsupportedModuleError(SparrowError, TypeError):
    """A module is none that can be replaced."""
