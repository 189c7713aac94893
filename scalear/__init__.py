"""Scale-wise autoregressive image generation: FlowAR, FlexVAR and VAR."""

from importlib.metadata import version

__version__ = version("scalear")
