"""The field's reference networks, with parameter counts and multiply-accumulates that tests hold to the published ones.

name -> MODELS -> build -> nn.Module;  name -> PRETRAINED -> load_pretrained -> nn.Module with trained weights
"""

from .models import MODELS, ZooEntry, build
from .pretrained import PRETRAINED, Pretrained, load_pretrained, weights

__all__ = ["build", "load_pretrained", "weights", "MODELS", "ZooEntry", "PRETRAINED", "Pretrained"]
